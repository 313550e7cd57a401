"""One SQLAlchemy engine, and so one pool, per server; never one per shard."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any
from uuid import UUID

from sqlalchemy import event
from sqlalchemy import exc as sa_exc
from sqlalchemy.engine import Engine, ExceptionContext, create_engine
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, QueuePool
from sqlalchemy.util.queue import Empty

from shardkit.core.names import CATALOG_SERVER
from shardkit.core.outcome import commit_outcome
from shardkit.core.shardmap import Server, ShardMap
from shardkit.db import connect, dialect
from shardkit.db.deadline import left
from shardkit.db.forked import in_forked_child
from shardkit.db.lineage import Lineage
from shardkit.errors import CommitUnknownError, DeadlineError, Outcome, PoolTimeoutError, ReadOnlyError, ServerDownError
from shardkit.settings import Settings

assert dialect  # registers postgresql+shardkit


class Engines:
    """The engines of one process, made when first used; a forked child starts with none of its parent's connections."""

    def __init__(self, settings: Settings, *, cluster_id: UUID, asyncio: bool = False, lineage: Lineage | None = None) -> None:
        self._settings, self._cluster_id, self._asyncio = settings, cluster_id, asyncio
        self.lineage = lineage or Lineage()
        self._engines: dict[Server, Engine] = {}
        self._replicas: dict[tuple[str, str, str], Engine] = {}
        self._lock = threading.Lock()
        self._listeners: list[Callable[[Engine], None]] = []
        in_forked_child(self._after_fork)

    def on_engine(self, listen: Callable[[Engine], None]) -> None:
        """Call *listen* with every engine, those to come as well."""
        with self._lock:
            self._listeners.append(listen)
            for engine in {*self._engines.values(), *self._replicas.values()}:
                listen(engine)

    def of(self, server: Server) -> Engine:
        """The engine of *server*; a server at another address is another one."""
        engine = self._engines.get(server)
        if engine is None:
            with self._lock:
                engine = self._engines.get(server) or self._make(server)
                self._engines[server] = engine
        return engine

    def of_replica(self, server: Server, dsn: str) -> Engine:
        """The engine of the replica of *server* at *dsn*: a pool and a budget of its own."""
        key = (server.name, server.dsn, dsn)
        engine = self._replicas.get(key)
        if engine is None:
            with self._lock:
                engine = self._replicas[key] = self._replicas.get(key) or self._make(server, replica=dsn)
        return engine

    def keep(self, shardmap: ShardMap) -> None:
        """Retire the pools of servers and replicas that *shardmap* does not have (any more) at their address."""
        there = {(server.name, server.dsn): server.replicas for server in shardmap.servers.values()}
        with self._lock:
            gone = [s for s in self._engines if (s.name, s.dsn) not in there and s.name != CATALOG_SERVER]
            retired = {self._engines.pop(server) for server in gone}
            lost = [key for key in self._replicas if key[2] not in there.get(key[:2], ())]
            retired |= {self._replicas.pop(key) for key in lost}
        for engine in retired:
            pool: Any = engine.pool
            pool.retire()

    def pools(self) -> dict[str, Any]:
        """The pool of each server that has been used, and of each replica, as ``pg1 (replica 1)``."""
        used = {server.name: engine.pool for server, engine in self._engines.items()}
        numbers: dict[str, int] = {}
        for (name, _, _), engine in self._replicas.items():
            numbers[name] = number = numbers.get(name, 0) + 1
            used[f"{name} (replica {number})"] = engine.pool
        return used

    def dispose(self, *, close: bool = True) -> list[Engine]:
        """Forget all engines (and close their idle connections); gives the engines back, for asyncio to close them."""
        with self._lock:
            engines = [*dict.fromkeys(self._engines.values()), *self._replicas.values()]
            self._engines.clear()
            self._replicas.clear()
        for engine in engines:
            if not (close and self._asyncio):
                engine.dispose(close=close)
        return engines

    def _after_fork(self) -> None:
        """The parent's sockets are not ours, neither to use nor to close. The engines stay, with new pools."""
        self._lock = threading.Lock()
        for engine in (*self._engines.values(), *self._replicas.values()):
            engine.dispose(close=False)

    def _make(self, server: Server, *, replica: str | None = None) -> Engine:
        same_dsn = next((e for s, e in self._engines.items() if s.name == server.name and s.dsn == server.dsn), None)
        if replica is None and same_dsn is not None:
            return same_dsn
        settings = self._settings
        who: dict[str, Any] = {"cluster_id": self._cluster_id, "replica": replica, "lineage": self.lineage}
        options: dict[str, Any] = {
            "pool_size": settings.pool_size,
            "max_overflow": 0,
            "pool_timeout": settings.pool_timeout_s,
            "pool_recycle": int(settings.connection_lifetime_s),
            "pool_reset_on_return": None,  # _handed_back does it, without a round trip when there is nothing to reset
            "pool_use_lifo": True,  # the connection used last has the warmest caches in its backend
            "use_native_hstore": False,
            "hide_parameters": True,
        }
        if self._asyncio:
            engine = create_async_engine(
                "postgresql+shardkit://",
                async_creator=lambda: connect.connect_async(server, settings, **who),
                poolclass=_AsyncBudgetPool,
                **options,
            ).sync_engine
        else:
            engine = create_engine(
                "postgresql+shardkit://",
                creator=lambda: connect.connect(server, settings, **who),
                poolclass=_BudgetPool,
                **options,
            )
        pool: Any = engine.pool
        pool.server_name, pool.queue_limit = server.name, settings.pool_queue
        event.listen(engine, "checkin", _handed_back)
        if replica is None and connect.can_fail_over(server, settings):
            event.listen(engine, "checkout", _living(server, self.lineage))
        event.listen(engine, "handle_error", _typed(server))
        for listen in self._listeners:
            listen(engine)
        return engine


class _Bounded(QueuePool):
    """A pool whose wait for a free connection ends in an error that says so."""

    server_name: str
    queue_limit: int
    retired: bool = False
    _longest_s: float

    def __init__(self, *args: Any, **options: Any) -> None:
        self._asking: deque[None] = deque()  # one for each; it counts without a lock
        super().__init__(*args, **options)

    @property
    def waiting(self) -> int:
        """How many wait for a connection now."""
        return len(self._asking)

    @property
    def _timeout(self) -> float:
        """How long to wait for a connection: not past the deadline of the block one stands in."""
        return left(self._longest_s)

    @_timeout.setter
    def _timeout(self, seconds: float) -> None:
        self._longest_s = seconds

    def _do_get(self) -> Any:
        if len(self._asking) >= self.queue_limit:
            raise PoolTimeoutError(
                f"{len(self._asking)} others wait for a connection to server {self.server_name!r} already: nothing was sent. "
                "Try again later; if it stays so, raise pool_size (and max_connections)"
            )
        self._asking.append(None)
        try:
            return super()._do_get()
        except sa_exc.TimeoutError as exc:
            raise PoolTimeoutError(
                f"all {self.size()} connections to server {self.server_name!r} stayed busy for {self._longest_s:g} s: "
                "nothing was sent. Close sessions sooner, or raise pool_size (and max_connections)"
            ) from exc
        finally:
            self._asking.pop()

    def retire(self) -> None:
        """End the connections that are idle; those at work end when they come back. Whoever still comes gets one of his own."""
        self.retired = True
        while True:
            try:
                record = self._pool.get(False)
            except Empty:
                return
            self._end(record)

    def _do_return_conn(self, record: Any) -> None:
        if self.retired and not self._asking:
            self._end(record)
        else:
            super()._do_return_conn(record)

    def _end(self, record: Any) -> None:
        if record.dbapi_connection is not None:
            _driver_of(record.dbapi_connection).pgconn.finish()  # from whatever thread, with nothing to wait for
        self._dec_overflow()

    def recreate(self) -> Any:
        """SQLAlchemy's copy for a disposed engine, with what we added."""
        new: Any = super().recreate()
        new.server_name, new.queue_limit = self.server_name, self.queue_limit
        return new


class _BudgetPool(_Bounded):
    """The budget of one server in this process."""


class _AsyncBudgetPool(_Bounded, AsyncAdaptedQueuePool):
    """The same for asyncio."""


def _handed_back(connection: Any, record: Any) -> None:
    """When a connection returns: the next user must see nothing of the last one."""
    if connection is None:
        return
    driver = _driver_of(connection)
    driver.disembark()
    if driver.dirty or not driver.idle:
        record.invalidate()


def _driver_of(connection: Any) -> Any:
    """The driver's own connection; SQLAlchemy wraps those of asyncio."""
    return getattr(connection, "_connection", connection)


def _living(server: Server, lineage: Lineage) -> Any:
    """A check of each connection that leaves the pool: was its server superseded since it was made?"""

    def check(connection: Any, _record: Any, _fairy: Any) -> None:
        driver = _driver_of(connection)
        if int(driver.timeline, 16) < lineage.highest(server):
            raise sa_exc.InvalidatePoolError("the server was superseded by a promotion")

    return check


def _typed(server: Server) -> Any:
    """Driver errors that mean trouble with *server* or an unknown outcome become ours, with the driver's as cause."""

    def handle(context: ExceptionContext) -> BaseException | None:
        original = context.original_exception
        if not isinstance(original, Exception):  # a cancelled task, Ctrl-C: not the server's doing
            return None
        sqlstate = getattr(original, "sqlstate", None)
        if getattr(original, "in_commit", False):
            if commit_outcome(sqlstate, lost=context.is_disconnect) is Outcome.UNKNOWN:
                unknown = CommitUnknownError(
                    f"COMMIT was sent to server {server.name!r} and no answer came: the work may or may not have taken effect. "
                    "Look before you repeat it"
                )
                unknown.server, unknown.xid = server.name, getattr(original, "xid", None)
                known: Any = original  # as in_commit
                unknown.timeline, unknown.life, unknown.backend_pid = known.timeline, known.life, known.backend_pid
                return unknown
            return None
        if sqlstate == "25006" and context.connection is not None:
            return ReadOnlyError("kit.read() is for reading: use kit.begin() or kit.session() to write; nothing was written")
        if getattr(original, "timed_out", False):
            return DeadlineError(
                f"the deadline passed before server {server.name!r} answered: the connection was dropped before COMMIT was "
                "sent, so nothing takes effect"
            )
        if context.is_disconnect or (sqlstate or "").startswith("57P"):
            return ServerDownError(
                f"the connection to server {server.name!r} broke before COMMIT was sent: nothing took effect"
            )
        return None

    return handle
