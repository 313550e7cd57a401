"""What whoever runs the cache asks of it: numbers, whether it keeps its promise, and what still has to be told to Redis."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from shardkit._async import colour, verifying
from shardkit._async.cache import PROBE_S, Store
from shardkit._async.marking import MARKER_TTL_MS, AsyncMarking
from shardkit._async.nodes import UnreachableError
from shardkit.catalog.router import Router
from shardkit.core.cacheproto import heard_of, tag
from shardkit.core.shardmap import Route
from shardkit.errors import CacheUnavailableError, ServerError, SettingsError
from shardkit.orm.cached import entity_of
from shardkit.orm.cachestats import CacheStats
from shardkit.orm.codec import read_header
from shardkit.sql import statements

OVERTAKEN: Final = 500
"""Keys in one command: Redis does nothing else meanwhile."""


def batched(names: Iterable[str], size: int) -> Iterator[list[str]]:
    """*names*, so many at a time."""
    ahead = iter(names)
    while some := list(islice(ahead, size)):
        yield some


class Tended:
    """A cache as its operators see it."""

    def __init__(self, router: Router, session: Callable[..., Any]) -> None:
        self._router, self._session = router, session
        self._cluster = router.cluster_id.hex[:8]
        self.counts = CacheStats()
        self.writer: AsyncMarking | None = None
        self._store: Store | None = None
        self._repaying = False

    def stats(self) -> CacheStats:
        """A copy of this process' counters; asks nobody."""
        return replace(self.counts, breaker_open=self._store is not None and self._store.open)

    async def servers(self) -> dict[str, Any]:
        """What the Redis servers say of themselves; ``warnings`` names settings by which markers could be lost."""
        if self._store is None:
            return {"servers": [], "warnings": ["no redis_url: every read goes to PostgreSQL"]}
        try:
            return await verifying.servers(self._store)
        except UnreachableError:
            return {"servers": [], "warnings": ["Redis does not answer: every read goes to PostgreSQL"]}

    async def verify(self, entity: type[Any], *, sample: int = 1000) -> verifying.Verified:
        """Compare up to *sample* stored rows of *entity* with PostgreSQL's; a difference is a row that was read stale."""
        if self._store is None:
            raise SettingsError("there is no redis_url, so there is no cache to verify")
        try:
            return await verifying.verify(self._store, entity_of(entity), self._cluster, self._session, sample=sample)
        except UnreachableError as exc:
            raise CacheUnavailableError("Redis does not answer: nothing was compared") from exc

    async def overtake(self, route: Route, changed: Mapping[str, int]) -> int:
        """Mark what others than sessions of shardkit have committed: names in the shard of *route*, each with the transaction
        that changed it. What is stored since, or not at all, is left alone; the number of those that were marked.
        """
        store = self._store
        if store is None:
            raise SettingsError("there is no redis_url, so there is no cache to tell")
        at, marked = tag(self._cluster, route.shard), 0
        try:
            for some in batched(changed, OVERTAKEN):
                todo: dict[int, list[str]] = {}
                for name, value in zip(some, await store.peek(at, some), strict=True):
                    header = read_header(value) if value is not None else None
                    if not heard_of(value, xid=changed[name], xmin=header and header.xmin):
                        todo.setdefault(changed[name], []).append(name)
                for xid, names in todo.items():
                    await store.mark(at, names, xid=xid, epoch=route.epoch, ttl_ms=MARKER_TTL_MS)
                    marked += len(names)
        except UnreachableError as exc:
            raise CacheUnavailableError("Redis did not take the markers: they come again") from exc
        self.counts.marks += marked
        return marked

    async def stored(self, route: Route, table: str, *, limit: int = 100_000) -> list[str]:
        """Names of everything that is stored of *table* in the shard of *route*."""
        if self._store is None:
            return []
        before = f"sk:{{{tag(self._cluster, route.shard)}}}:"
        found = await self._store.scan(f"{before}{table}:*", limit=limit)
        return [key.decode()[len(before) :] for key in found]

    async def undrained(self) -> int:
        """Transactions, of all shards, whose markers Redis has not got: their outbox rows wait for ``drain``."""
        waiting = 0
        for shard in sorted(self._router.map.placements):
            async with self._session(None, shard=shard, read_only=True) as session:
                connection = await session.connection()
                waiting += (await connection.execute(text(statements("cache")["depth"]))).scalar_one()
        return waiting

    async def drain(self, shards: Iterable[int] | None = None) -> int:
        """Mark what writers could not mark while Redis was away (the outbox rows of *shards*, of all if not given)."""
        if self.writer is None:
            return 0
        done = 0
        for shard in sorted(self._router.map.placements) if shards is None else shards:
            async with self._session(None, shard=shard) as session:
                try:
                    while some := await self.writer.drain(session):
                        done += some
                except UnreachableError as exc:
                    raise CacheUnavailableError("Redis did not take the markers: their outbox rows stay, try again") from exc
        return done

    def _owing(self) -> None:
        if not self._repaying:
            self._repaying = True
            colour.background(self._recovered)

    async def _recovered(self) -> None:
        """Pay this process' debts, as long as Redis is there; a row is seen when its transaction has ended."""
        store, writer = self._store, self.writer
        try:
            while store is not None and writer is not None and writer.debts and not (store.open or store.closed):
                with suppress(CacheUnavailableError, DBAPIError, ServerError):  # the debts stay, for the next time
                    await self.drain(sorted(writer.debts))
                if writer.debts:
                    await colour.pause(PROBE_S)
        finally:
            self._repaying = False

    async def close(self) -> None:
        """Close the connections to Redis."""
        if self._store is not None:
            await self._store.close()
