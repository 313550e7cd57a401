# Generated from shardkit/_async/kit.py by tests/generate_sync.py: change that file instead.
"""The facade an application holds: sessions by tenant, by id and by shard, and whole units of work."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from sqlalchemy import exc as sa_exc

from shardkit._sync import colour
from shardkit._sync.reading import Cache
from shardkit.catalog.router import Router
from shardkit.core.hashing import TenantKey
from shardkit.core.ids import shard_of_id
from shardkit.core.outcome import safe_to_retry
from shardkit.core.shardmap import Route, ShardMap
from shardkit.db.deadline import left, within
from shardkit.errors import CommitUnknownError, Outcome, ShardKitError, ShardMovedError
from shardkit.orm.context import TenantContext
from shardkit.orm.session import RoutedSession, FixedGuide
from shardkit.settings import Settings

T = TypeVar("T")
P = ParamSpec("P")
RUN_BUDGET_S = 15.0
RUN_FIRST_PAUSE_S = 0.01


class ShardKit:
    """One cluster, as application code sees it. Make one per process, at start; threads, tasks and forks share it.

    ``ShardKit(catalog_url=...)`` takes every setting by name; ``from_env`` and ``from_toml`` read them. The map is
    read at once: CatalogUnavailableError if that fails and none was saved, NotInitializedError for an empty catalog.
    """

    def __init__(self, catalog_url: str | None = None, *, settings: Settings | None = None, **given: Any) -> None:
        if settings is None:
            settings = Settings(catalog_url=catalog_url or "", **given)
        self.settings = settings
        self._router = Router(settings, asyncio=colour.ASYNC)
        self._context = TenantContext()
        self.cache = Cache(settings, router=self._router, context=self._context, session=self._open)
        """Entities by key, through Redis."""

    def _open(self, tenant: TenantKey | None, **options: Any) -> RoutedSession:
        return RoutedSession(guide=self._router, tenant=tenant, cache=self.cache.writer, **options)

    @classmethod
    def from_env(cls, **overrides: Any) -> Self:
        """Settings from ``SHARDKIT_CONFIG`` and ``SHARDKIT_*`` variables."""
        return cls(settings=Settings.from_env(**overrides))

    @classmethod
    def from_toml(cls, path: str | Path, **overrides: Any) -> Self:
        """Settings from a TOML file."""
        return cls(settings=Settings.from_toml(path, **overrides))

    def session(self, tenant: TenantKey | None = None, **options: Any) -> RoutedSession:
        """A session on the tenant's shard, of the current tenant if none is given. *options* are those of ``Session``.

        Use it as a context manager; it commits when told to. Raises NoTenantError, TenantKeyError, TenantLockedError.
        """
        tenant = self._context.resolve(tenant)
        self._router.locate(tenant)
        return self._open(tenant, **options)

    def begin(self, tenant: TenantKey | None = None, **options: Any) -> Unit:
        """A session that commits at the end of its block, or rolls back on an error."""
        return Unit(self.session(tenant, **options))

    def read(self, tenant: TenantKey | None = None, **options: Any) -> RoutedSession:
        """A read-only session, the cheapest way: plain SELECTs make one round trip and hold no transaction.

        Each statement sees what is committed when it begins (READ COMMITTED, which promises no more). SQL text, locking reads
        and functions that may write run inside BEGIN READ ONLY. Writing raises ReadOnlyError.
        """
        return self.session(tenant, read_only=True, autoflush=False, **options)

    def run(
        self,
        tenant: TenantKey | None,
        work: Callable[Concatenate[RoutedSession, P], T],
        *args: P.args,
        **keywords: P.kwargs,
    ) -> T:
        """A whole unit of work: ``work(session, ...)`` and COMMIT, done again when the outcome was *not done*.

        The shard moved, a serialization failure, a deadlock, a server that restarted: tried again with growing pauses for up
        to 15 s, or to the deadline. Nothing is repeated that may have taken effect: where the answer to COMMIT was lost, the
        server is asked what became of the transaction, and only if it cannot tell you get CommitUnknownError. *work* may
        run more than once, so it should not do what cannot be repeated outside its session.
        """
        tenant = self._context.resolve(tenant)
        give_up, pause = time.monotonic() + left(RUN_BUDGET_S), RUN_FIRST_PAUSE_S
        while True:
            try:
                with self.begin(tenant, tracked=True) as session:
                    result = work(session, *args, **keywords)
            except CommitUnknownError as exc:
                outcome = colour.in_thread(self._router.settle, exc)
                if outcome is Outcome.DONE:
                    return result
                if outcome is Outcome.UNKNOWN or time.monotonic() + pause > give_up:
                    raise
                moved = False
            except (ShardKitError, sa_exc.DBAPIError) as exc:
                if not _not_done(exc) or time.monotonic() + pause > give_up:
                    raise
                moved = isinstance(exc, ShardMovedError)
            else:
                return result
            if not moved:  # it waited for the map already
                time.sleep(random.uniform(pause / 2, pause))  # noqa: S311  # jitter, not a secret
                pause = min(pause * 2, 1.0)

    def tenant(self, tenant: TenantKey, *, lock: bool = False) -> AbstractContextManager[TenantKey]:
        """Make *tenant* the current one inside a block; with *lock* asking for another one inside it is an error."""
        self._router.locate(tenant)
        return self._context.enter(tenant, lock=lock)

    def deadline(self, seconds: float) -> AbstractContextManager[None]:
        """Every call to a server inside the block ends by *seconds* from now (and a quarter): DeadlineError, or, for a COMMIT
        whose answer did not come in time, CommitUnknownError.
        """
        return within(seconds)

    @property
    def current_tenant(self) -> TenantKey | None:
        """Tenant of the block one stands in, if any."""
        return self._context.tenant

    def session_for_id(self, id: int, *, tenant: TenantKey | None = None, **options: Any) -> RoutedSession:  # noqa: A002
        """A session on the shard an id was born in.

        With a tenant (given, or the block's) it is that tenant's session; without one it is operator access to the shard,
        because an id does not say whose row it is. Raises IdError, UnknownShardError.
        """
        shard = shard_of_id(id)
        tenant = tenant if tenant is not None else self._context.tenant
        if tenant is not None:
            return self.session(tenant, **options)
        return self.shard(shard).session(**options)

    def shard(self, shard: int) -> ShardAccess:
        """Operator access to one shard: every tenant's rows, no filter."""
        self._router.map.route(shard)
        return ShardAccess(self._router, shard, self._open)

    def global_session(self, **options: Any) -> RoutedSession:
        """A session where the global tables live."""
        return RoutedSession(guide=FixedGuide(self._router.global_leg()), **options)

    def locate(self, tenant: TenantKey) -> Route:
        """Route of *tenant*: shard, schema, server, epoch. No I/O."""
        return self._router.locate(tenant)

    def locate_id(self, id: int) -> Route:  # noqa: A002
        """Route of the shard an id was born in. No I/O."""
        return self._router.map.route(shard_of_id(id))

    @property
    def map(self) -> ShardMap:
        """The shard map in memory."""
        return self._router.map

    def refresh(self) -> ShardMap:
        """Ask the catalog for a newer map now. Raises CatalogUnavailableError."""
        return colour.in_thread(self._router.watch.refresh)

    def close(self) -> None:
        """Stop watching the map and close idle connections."""
        self._router.close()
        self.cache.close()
        for engine in self._router.engines.dispose():
            colour.close(engine)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class ShardAccess:
    """One shard, for an operator."""

    __slots__ = ("_open", "_router", "_shard")

    def __init__(self, router: Router, shard: int, session: Callable[..., RoutedSession]) -> None:
        self._router, self._shard, self._open = router, shard, session

    @property
    def route(self) -> Route:
        """Where the shard is now."""
        return self._router.map.route(self._shard)

    def session(self, **options: Any) -> RoutedSession:
        """A session that sees all tenants' rows of the shard, as the operator role."""
        return self._open(None, shard=self._shard, **options)

    def begin(self, **options: Any) -> Unit:
        """The same, committed at the end of its block."""
        return Unit(self.session(**options))


class Unit:
    """A session that commits at the end of its block."""

    __slots__ = ("_session",)

    def __init__(self, session: RoutedSession) -> None:
        self._session = session

    def __enter__(self) -> RoutedSession:
        return self._session

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._session.commit()
        finally:
            self._session.close()


def _not_done(exc: ShardKitError | sa_exc.DBAPIError) -> bool:
    if isinstance(exc, ShardKitError):
        return exc.retryable and exc.outcome is Outcome.NOT_DONE
    return safe_to_retry(getattr(exc.orig, "sqlstate", None))
