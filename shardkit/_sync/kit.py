# Generated from shardkit/_async/kit.py by tests/generate_sync.py: change that file instead.
"""The facade an application holds: sessions by tenant, by id and by shard, and whole units of work."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from sqlalchemy import exc as sa_exc
from sqlalchemy import text

from shardkit._sync import colour
from shardkit._sync.fanout import FanOut
from shardkit._sync.outbox import Outbox
from shardkit._sync.reading import Cache
from shardkit._sync.stream import RowStream
from shardkit._sync.transaction import Transaction
from shardkit.catalog.decisions import Decisions
from shardkit.catalog.loads import Load
from shardkit.catalog.replicas import ReplicaGuide
from shardkit.catalog.resolver import BackgroundResolver
from shardkit.catalog.router import Router
from shardkit.core.hashing import TenantKey
from shardkit.core.ids import shard_of_id
from shardkit.core.outcome import safe_to_retry
from shardkit.core.shardmap import Route, ShardMap
from shardkit.core.tally import KitStats
from shardkit.core.token import Token, seal, token_after, token_key, unseal
from shardkit.db.deadline import left, within
from shardkit.errors import CommitUnknownError, Outcome, SessionError, ShardKitError, ShardMovedError
from shardkit.orm.births import Births
from shardkit.orm.context import TenantContext
from shardkit.orm.fanload import FanOutResult
from shardkit.orm.session import RoutedSession, FixedGuide
from shardkit.orm.unique import KeyLookup
from shardkit.settings import Settings

T = TypeVar("T")
P = ParamSpec("P")
POSITION = text("SELECT left(pg_walfile_name(pg_current_wal_insert_lsn()), 8), pg_current_wal_insert_lsn()::text")
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
        self._token_key = token_key(self._router.cluster_id, settings.token_key)
        self._keys = KeyLookup(self._router)
        self._births = Births(self._router, asyncio=colour.ASYNC)
        self._decisions = Decisions(settings)
        self._resolver = BackgroundResolver(settings, lambda: self._router.map)
        self._fan_out = FanOut(self._router, settings, self._decisions)
        self.outbox = Outbox(self._router, self._fan_out, self._open)

    def _open(self, tenant: TenantKey | None, **options: Any) -> RoutedSession:
        return RoutedSession(guide=self._router, tenant=tenant, cache=self.cache.writer, seal=self._seal, **options)

    def _seal(self, token: Token) -> str:
        return seal(token, self._token_key)

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
        return RoutedSession(**self.session_arguments(tenant), **options)

    def session_arguments(self, tenant: TenantKey | None = None) -> dict[str, Any]:
        """What a subclass of RoutedSession is made with, to be a session as ``session`` gives it."""
        tenant = self._context.resolve(tenant)
        self._router.locate(tenant)
        trail = self._context.trail_of(tenant)
        return {"guide": self._router, "tenant": tenant, "cache": self.cache.writer, "seal": self._seal, "trail": trail}

    def begin(self, tenant: TenantKey | None = None, **options: Any) -> Unit:
        """A session that commits at the end of its block, or rolls back on an error."""
        return Unit(self.session(tenant, **options))

    def read(
        self,
        tenant: TenantKey | None = None,
        *,
        replica: bool | None = None,
        max_lag_s: float | None = None,
        token: str | None = None,
        **options: Any,
    ) -> RoutedSession:
        """A read-only session, the cheapest way: plain SELECTs make one round trip and hold no transaction.

        Each statement sees what is committed when it begins (READ COMMITTED, which promises no more). SQL text, locking reads
        and functions that may write run inside BEGIN READ ONLY. Writing raises ReadOnlyError.

        *replica* (or the setting ``read_from``, or a *max_lag_s*) lets a replica serve plain SELECTs, if it shows everything
        that was committed up to *max_lag_s* seconds ago, everything this block of ``kit.tenant`` has written, and everything
        up to *token* (``session.token`` or ``kit.token``). Where no replica is known to do so, and for anything else, it is
        the primary.
        Raises TokenError for a token that is malformed, forged or another cluster's.
        """
        tokens = () if token is None else (unseal(token, self._token_key),)
        if max_lag_s is not None and not 0 < max_lag_s < float("inf"):
            raise SessionError("max_lag_s must be a number of seconds above 0; nothing was read")
        if replica is None:
            replica = max_lag_s is not None or self.settings.read_from == "replica"
        if not replica:
            return self.session(tenant, read_only=True, autoflush=False, **options)
        tenant = self._context.resolve(tenant)
        guide = self._replica_guide(tenant, max_lag_s, tokens)
        return RoutedSession(guide=guide, tenant=tenant, read_only=True, autoflush=False, **options)

    def _replica_guide(self, tenant: TenantKey, max_lag_s: float | None, tokens: tuple[Token, ...]) -> ReplicaGuide:
        trail = self._context.trail_of(tenant)
        if trail is not None and trail.after is not None:
            tokens = (*tokens, trail.after)
        return ReplicaGuide(
            self._router,
            max_lag_s=max_lag_s or self.settings.replica_max_lag_s,
            wait_s=self.settings.replica_wait_s,
            written=lambda: None if trail is None else trail.written_s,
            tokens=tokens,
        )

    def token(self, tenant: TenantKey | None = None) -> str:
        """A read-your-writes token, for a cookie or a header: ``kit.read(tenant, token=token)``, in any program of the cluster,
        sees everything that was committed for the tenant before this call. One question to the primary; ``session.token`` needs
        none.
        """
        with self.session(tenant, read_only=True) as session:
            timeline, lsn = (session.execute(POSITION)).one()
            route = session.route
        return self._seal(token_after(route, timeline, lsn))

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
            worked = False
            try:
                with self.begin(tenant, tracked=True) as session:
                    result = work(session, *args, **keywords)
                    worked = True
            except CommitUnknownError as exc:
                if not worked:  # the work met it: it is about a COMMIT that is not ours
                    raise
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
            self._router.tally.retries += 1
            if not moved:  # it waited for the map already
                time.sleep(random.uniform(pause / 2, pause))  # noqa: S311  # jitter, not a secret
                pause = min(pause * 2, 1.0)

    def tenant(self, tenant: TenantKey, *, lock: bool = False, token: str | None = None) -> AbstractContextManager[TenantKey]:
        """Make *tenant* the current one inside a block; with *lock* asking for another one inside it is an error.

        Reads inside see what was written inside, also on replicas; and up to *token*, a session's or one of ``kit.token``.
        """
        self._router.locate(tenant)
        return self._context.enter(tenant, lock=lock, after=None if token is None else unseal(token, self._token_key))

    def deadline(self, seconds: float) -> AbstractContextManager[None]:
        """Every call to a server inside the block ends by *seconds* from now (and a quarter): DeadlineError, or, for a COMMIT
        whose answer did not come in time, CommitUnknownError.
        """
        return within(seconds)

    @property
    def current_tenant(self) -> TenantKey | None:
        """Tenant of the block one stands in, if any."""
        return self._context.tenant

    @property
    def wrote(self) -> bool:
        """Whether a unit of work of this block's tenant that may have written has ended in the block one stands in."""
        return self._context.wrote

    def session_for_id(
        self,
        id: int,  # noqa: A002  what it is
        *,
        tenant: TenantKey | None = None,
        operator: bool = False,
        **options: Any,
    ) -> RoutedSession:
        """A session on the shard an id was born in, or, where tenants were isolated out of that, on the one that has its row.

        With a tenant (given, or the block's) it is that tenant's session; without one it is operator access to the shard,
        because an id does not say whose row it is. *operator* asks for that inside a tenant's block too. Raises IdError,
        UnknownShardError.
        """
        shard = shard_of_id(id)
        tenant = tenant if tenant is not None or operator else self._context.tenant
        if tenant is not None:
            return self.session(tenant, **options)
        if len(self._router.map.family(shard)) > 1:
            return RoutedSession(guide=self._births.guide(id), cache=self.cache.writer, **options)
        return self.shard(shard).session(**options)

    def shard(self, shard: int) -> ShardAccess:
        """Operator access to one shard: every tenant's rows, no filter."""
        self._router.map.route(shard)
        return ShardAccess(self._router, shard, self._open)

    def transaction(self, *tenants: TenantKey, patience_s: int = 10) -> Transaction:
        """One transaction over several tenants: ``tx.session(tenant)`` is each one's session; it commits all or nothing.

        Where more than one of them wrote, in two phases: if this program dies in between, a resolver ends what it left,
        at the latest *patience_s* after it was prepared; until then its rows stay locked. Raises TwoPhaseError (rolled back
        everywhere), TwoPhaseDisabledError, CommitUnknownError.
        """
        sessions = {tenant: self.session(tenant) for tenant in tenants}
        if len(sessions) > 1:
            self._resolver.start()
        return Transaction(self._router, self._decisions, sessions, patience_s=patience_s)

    def fan_out(self, statement: Any, params: Mapping[str, Any] | None = None, **options: Any) -> FanOutResult:
        """Rows of a select() over all shards, as one database with all rows would give them.

        *options*: ``shards=[...]`` or ``tenants=[...]`` to ask those only, ``deadline_s`` (30) for the whole,
        ``max_rows`` (a million), ``snapshot=True`` for a moment at which every transaction over several shards is wholly
        visible or not at all (else NoSnapshotError), ``on_error="partial"`` for what is left when shards fail (see
        ``failures`` of the result).
        Every tenant's rows are read, as operator. Raises FanOutError with what each failing shard said,
        FanOutRefusedError for what cannot be merged rightly, ResultTooLargeError.
        """
        return self._fan_out.rows(statement, params, **options)

    def fan_out_stream(self, statement: Any, params: Mapping[str, Any] | None = None, **options: Any) -> RowStream:
        """The rows of ``fan_out`` one by one, in bounded memory: ``with kit.fan_out_stream(...) as rows: for ...``.

        *options*: ``shards``, ``tenants``, ``batch`` (1,000 rows of each chunk of shards at a time), ``deadline_s`` for each
        wait. Groups and DISTINCT are refused.
        """
        return self._fan_out.stream(statement, params, **options)

    def fan_out_scalar(self, statement: Any, *, reduce: Callable[[list[Any]], Any] | None = None, **options: Any) -> Any:
        """The one value of a select() over all shards; with *reduce*, what that makes of the list of shards' own values
        (NULLs left out), for what cannot be merged by itself.
        """
        return self._fan_out.scalar(statement, reduce, **options)

    def global_session(self, **options: Any) -> RoutedSession:
        """A session where the global tables live."""
        return RoutedSession(guide=FixedGuide(self._router.global_leg()), **options)

    def locate(self, tenant: TenantKey) -> Route:
        """Route of *tenant*: shard, schema, server, epoch. No I/O."""
        return self._router.locate(tenant)

    def locate_by(self, attribute: Any, value: Any) -> Route | None:
        """Route of the tenant that has *value* in a GlobalUnique attribute: ``kit.locate_by(User.email, "x")``.

        One read of the registry, remembered for a few seconds; None if nobody has it.
        """
        tenant = colour.in_greenlet(partial(self._keys.tenant_of, attribute, value))
        return None if tenant is None else self._router.locate(tenant)

    def locate_id(self, id: int) -> Route:  # noqa: A002  what it is
        """Route of the shard an id was born in. No I/O. ``route_of_id`` says where its row is."""
        return self._router.map.route(shard_of_id(id))

    def route_of_id(self, id: int) -> Route:  # noqa: A002  what it is
        """Route of the shard that has the row of an id: that of its birth, or, where tenants were isolated out of that, the one
        of its family that has it, which is asked of their servers. Raises IdError, UnknownShardError.
        """
        return colour.in_greenlet(partial(self._births.route, id))

    def load(self) -> Load:
        """Units of work of this process by shard and by most active tenant, since the catalog was last told. No I/O."""
        return self._router.load.now()

    @property
    def map(self) -> ShardMap:
        """The shard map in memory."""
        return self._router.map

    def stats(self) -> KitStats:
        """What this process says of itself: map version, pools, retries, fences, counters of the cache. No I/O."""
        return self._router.stats(self.cache.stats().values())

    def refresh(self) -> ShardMap:
        """Ask the catalog for a newer map now. Raises CatalogUnavailableError."""
        return colour.in_thread(self._router.watch.refresh)

    def close(self) -> None:
        """Stop watching the map and close idle connections."""
        self._router.close()
        self.cache.close()
        self._resolver.stop()
        self._decisions.close()
        self._fan_out.close()
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
