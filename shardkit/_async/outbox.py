"""Effects on other tenants: recorded in the transaction that causes them, applied exactly once, in order for each pair.

An effect is applied in one transaction with the note, at the receiver's, of how far the sender's effects were applied. Where a
worker dies before the effect is taken out of the outbox, that note keeps the next one from applying it again.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from sqlalchemy import exc as sa_exc
from sqlalchemy import func, select

from shardkit._async import colour
from shardkit._async.fanout import AsyncFanOut
from shardkit.catalog.router import Router
from shardkit.core.hashing import TenantKey, tenant_from_text
from shardkit.errors import FanOutError, NoTenantError, SettingsError, ShardKitError
from shardkit.orm.effects import ADVANCE, ALONE, APPLIED, IN_TURN, LOCK_CLASS, OLDEST, OUTBOX, SEND, Effect, Lag, as_json
from shardkit.orm.session import AsyncRoutedSession

log = logging.getLogger("shardkit.outbox")

Handler = Callable[[AsyncRoutedSession, Effect], Awaitable[None]]


class AsyncOutbox:
    """``kit.outbox``: send inside a tenant's transaction; deliver in a worker."""

    def __init__(self, router: Router, fan_out: AsyncFanOut, session: Callable[..., AsyncRoutedSession]) -> None:
        self._router, self._fan_out, self._session = router, fan_out, session

    async def send(self, session: AsyncRoutedSession, *, to: TenantKey, kind: str, payload: Any = None) -> int:
        """Record an effect on *to* in the open transaction of *session*; gives its id. Nothing is sent before COMMIT.

        *payload* is what JSON can hold. Until this transaction ends, others that send from its tenant to *to* wait.
        """
        if session.tenant is None:
            raise NoTenantError("an effect is sent from a tenant's session; nothing was recorded")
        self._router.locate(to)
        await session.execute(IN_TURN, {"class": LOCK_CLASS, "pair": f"{session.tenant}\x1f{to}"})
        found = await session.execute(SEND, {"to": str(to), "kind": kind, "payload": as_json(payload)})
        return int(found.scalar_one())

    async def deliver(self, handlers: Mapping[str, Handler], *, limit: int = 100) -> int:
        """Apply what waits, at most *limit* effects of each shard; gives how many were applied.

        ``handlers[kind](session, effect)`` works in a transaction of the receiver, with which it is committed. One that raises
        is logged, and holds back the later effects of its pair until it succeeds. Any number of workers may deliver at once.
        """
        waiting = await self._waiting()
        applied = 0
        for shard in [shard for shard, count in waiting.items() if count]:
            try:
                applied += await self._drain(shard, handlers, limit=limit)
            except (ShardKitError, sa_exc.DBAPIError) as exc:
                log.warning("the outbox of shard %s is left for the next time: %s", shard, exc)
        return applied

    async def work(self, handlers: Mapping[str, Handler], *, until: Callable[[], bool], every_s: float = 1.0) -> None:
        """Deliver until *until* says so, and pause where nothing waited."""
        while not until():
            try:
                applied = await self.deliver(handlers)
            except FanOutError as exc:
                log.warning("no outbox could be looked into; that is tried again: %s", exc)
                applied = 0
            if not applied:
                await colour.pause(every_s)

    async def lag(self) -> Lag:
        """How many effects wait, and since when the oldest one does: of all, and of each shard."""
        counts = await self._fan_out.each(select(func.count()).select_from(OUTBOX))
        waiting = {shard: count for shard, count in counts.items() if count}
        since = await self._fan_out.each(select(func.min(OUTBOX.c.created_at)), shards=waiting) if waiting else {}
        shards = {shard: Lag(count, since.get(shard)) for shard, count in waiting.items()}
        oldest = min((at for at in since.values() if at is not None), default=None)
        return Lag(sum(waiting.values()), oldest, shards)

    async def _waiting(self) -> dict[int, int]:
        """How many effects wait in each shard that answers. Raises FanOutError if none does."""
        counted = select(func.count()).select_from(OUTBOX)
        try:
            return await self._fan_out.each(counted)
        except FanOutError as exc:
            answered = self._router.map.placements.keys() - exc.failures.keys()
            if not answered or not exc.failures:
                raise
            log.warning("the outboxes of %s shards are left for the next time: %s", len(exc.failures), exc)
            return await self._fan_out.each(counted, shards=answered)

    async def _drain(self, shard: int, handlers: Mapping[str, Handler], *, limit: int) -> int:
        """Apply the oldest effects of one shard; by one worker at a time, as long as its connection lives."""
        applied: list[int] = []
        async with AsyncRoutedSession(guide=self._router, shard=shard) as source:
            if not await source.scalar(ALONE, {"class": LOCK_CLASS, "shard": shard}):
                return 0
            held_back: set[tuple[str, str]] = set()
            after, more = 0, True
            while more and len(applied) < limit:
                senders, receivers = [pair[0] for pair in held_back], [pair[1] for pair in held_back]
                wanted = {"limit": limit - len(applied), "after": after, "senders": senders, "receivers": receivers}
                rows, known, more = (await source.execute(OLDEST, wanted)).all(), len(held_back), False
                for row in rows:
                    after = row.id
                    if (row.from_tenant, row.to_tenant) in held_back:
                        continue
                    effect = self._effect(row)
                    try:
                        await self._apply(shard, effect, handlers)
                    except Exception:  # whatever a handler raises, other pairs go on
                        log.exception("effect %s (%s) could not be applied; it will be tried again", effect.id, effect.kind)
                        held_back.add((row.from_tenant, row.to_tenant))
                    else:
                        applied.append(effect.id)
                more = len(held_back) > known  # what they hold back has taken the place of other pairs' effects
            if applied:
                await source.execute(APPLIED, {"ids": applied})
                await source.commit()
        return len(applied)

    async def _apply(self, shard: int, effect: Effect, handlers: Mapping[str, Handler]) -> None:
        """The effect and the note that it was applied, in one transaction of the receiver."""
        if effect.kind not in handlers:
            raise SettingsError(f"no handler for effects of the kind {effect.kind!r}")
        async with self._session(effect.to_tenant) as session:
            given = {"shard": shard, "from": str(effect.from_tenant), "to": str(effect.to_tenant), "id": effect.id}
            if (await session.execute(ADVANCE, given)).first() is not None:
                await handlers[effect.kind](session, effect)
            await session.commit()

    def _effect(self, row: Any) -> Effect:
        kind = self._router.map.tenant_type
        return Effect(
            row.id,
            tenant_from_text(row.from_tenant, kind),
            tenant_from_text(row.to_tenant, kind),
            row.kind,
            row.payload,
            row.created_at,
        )
