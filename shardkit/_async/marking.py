"""The writers' side: markers before COMMIT, and what is done when they cannot be placed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from sqlalchemy import text

from shardkit._async import colour
from shardkit._async.cache import Store
from shardkit._async.nodes import UnreachableError
from shardkit.core.cacheproto import tag
from shardkit.db.leg import driver_connection
from shardkit.errors import CacheUnavailableError
from shardkit.orm.cachestats import CacheStats
from shardkit.settings import OnDown
from shardkit.sql import statements

MARKER_TTL_MS: Final = 3_600_000
BARRIER_TTL_MS: Final = MARKER_TTL_MS // 2
"""Shorter than a marker's: so a transaction that outlives its marker is older than the barrier, and stops every fill."""
_XID: Final = "SELECT pg_current_xact_id()::text"
_SQL: Final = statements("cache")


class AsyncMarking:
    """Places the markers of a transaction; sessions call it between flush and COMMIT."""

    def __init__(self, store: Store, counts: CacheStats, *, cluster: str, on_down: OnDown, marker_ttl_ms: int) -> None:
        self._store, self._counts, self._cluster = store, counts, cluster
        self._on_down, self._ttl_ms = on_down, marker_ttl_ms
        self.debts: dict[int, int] = {}
        """Shards in which this process has left outbox rows, with the last transaction that did."""
        self.on_debt: Callable[[], object] = int
        """Called where one was left though Redis is asked: no recovery of it will come."""

    def place(self, driver: Any, names: set[str]) -> None:
        """Mark *names* with the transaction open on *driver*."""
        work: Any = self._place  # a coroutine function in one colour only
        colour.run(work(driver, sorted(names)))

    async def _place(self, driver: Any, names: Sequence[str]) -> None:
        known = driver.commit_xid  # it came with the flush
        if known is None:
            (known,) = await (await driver.execute(_XID, prepare=True)).fetchone()
        xid, route = int(known), driver.leg.route
        try:
            await self._store.mark(tag(self._cluster, route.shard), names, xid=xid, epoch=route.epoch, ttl_ms=self._ttl_ms)
            self._counts.marks += len(names)
        except UnreachableError as exc:
            self._counts.down += 1
            if self._on_down == "strict":
                raise CacheUnavailableError(
                    "Redis did not take the marker of this transaction and cache_on_down is strict: it is rolled back. "
                    "Run it again when Redis is back, or set cache_on_down = outbox"
                ) from exc
            if self._on_down == "outbox":
                await driver.execute(_SQL["put"], (xid, list(names)))
                self._counts.outbox += 1
                self.debts[route.shard] = xid
                if not self._store.open:
                    self.on_debt()

    async def drain(self, session: Any) -> int:
        """Mark the outbox rows of an operator's *session*; the number of rows."""
        connection = await session.connection()
        rows = (await connection.execute(text(_SQL["take"]))).all()
        if rows:
            inner = getattr(session, "sync_session", session)
            driver = driver_connection(inner._connection)
            cursor = await driver.execute(_XID)
            xid = int((await cursor.fetchone())[0])
            route = driver.leg.route
            names = sorted({name for (found,) in rows for name in found})
            at = tag(self._cluster, route.shard)
            await self._store.mark(at, names, xid=xid, epoch=route.epoch, ttl_ms=self._ttl_ms)
        owed = self.debts.get(session.route.shard)
        paid = owed is not None and not rows and (await connection.execute(text(_SQL["is_over"]), {"xid": owed})).scalar_one()
        await session.commit()
        if paid and self.debts.get(session.route.shard) == owed:
            del self.debts[session.route.shard]
        return len(rows)
