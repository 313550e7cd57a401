# Generated from shardkit/_async/tending.py by tests/generate_sync.py: change that file instead.
"""What whoever runs the cache asks of it: numbers, whether it keeps its promise, and what still has to be told to Redis."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from shardkit._sync import verifying
from shardkit._sync.cache import Store, UnreachableError
from shardkit._sync.marking import Marking
from shardkit.catalog.router import Router
from shardkit.errors import CacheUnavailableError, ServerError, SettingsError
from shardkit.orm.cached import entity_of
from shardkit.orm.cachestats import CacheStats
from shardkit.sql import statements


class Tended:
    """A cache as its operators see it."""

    def __init__(self, router: Router, session: Callable[..., Any]) -> None:
        self._router, self._session = router, session
        self._cluster = router.cluster_id.hex[:8]
        self.counts = CacheStats()
        self.writer: Marking | None = None
        self._store: Store | None = None

    def stats(self) -> CacheStats:
        """A copy of this process' counters; asks nobody."""
        return replace(self.counts, breaker_open=self._store is not None and self._store.open)

    def servers(self) -> dict[str, Any]:
        """What the Redis servers say of themselves; ``warnings`` names settings by which markers could be lost."""
        if self._store is None:
            return {"servers": [], "warnings": ["no redis_url: every read goes to PostgreSQL"]}
        try:
            return verifying.servers(self._store)
        except UnreachableError:
            return {"servers": [], "warnings": ["Redis does not answer: every read goes to PostgreSQL"]}

    def verify(self, entity: type[Any], *, sample: int = 1000) -> verifying.Verified:
        """Compare up to *sample* stored rows of *entity* with PostgreSQL's; a difference is a row that was read stale."""
        if self._store is None:
            raise SettingsError("there is no redis_url, so there is no cache to verify")
        try:
            return verifying.verify(self._store, entity_of(entity), self._cluster, self._session, sample=sample)
        except UnreachableError as exc:
            raise CacheUnavailableError("Redis does not answer: nothing was compared") from exc

    def undrained(self) -> int:
        """Transactions, of all shards, whose markers Redis has not got: their outbox rows wait for ``drain``."""
        waiting = 0
        for shard in sorted(self._router.map.placements):
            with self._session(None, shard=shard, read_only=True) as session:
                connection = session.connection()
                waiting += (connection.execute(text(statements("cache")["depth"]))).scalar_one()
        return waiting

    def drain(self, shards: Iterable[int] | None = None) -> int:
        """Mark what writers could not mark while Redis was away (the outbox rows of *shards*, of all if not given)."""
        if self.writer is None:
            return 0
        done = 0
        for shard in sorted(self._router.map.placements) if shards is None else shards:
            with self._session(None, shard=shard) as session:
                try:
                    done += self.writer.drain(session)
                except UnreachableError as exc:
                    raise CacheUnavailableError("Redis did not take the markers: their outbox rows stay, try again") from exc
        return done

    def _recovered(self) -> None:
        if self.writer is not None:
            with suppress(CacheUnavailableError, DBAPIError, ServerError):  # the debts stay, for the next time
                self.drain(sorted(self.writer.debts))

    def close(self) -> None:
        """Close the connections to Redis."""
        if self._store is not None:
            self._store.close()
