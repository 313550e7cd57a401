"""SQLAlchemy's psycopg dialect, taught three things: routed connections, the fence, and the phase of a COMMIT."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar

from sqlalchemy.dialects import registry
from sqlalchemy.dialects.postgresql.psycopg import (
    AsyncAdapt_psycopg_cursor,
    PGDialect_psycopg,
    PGDialectAsync_psycopg,
    PGIdentifierPreparer_psycopg,
)
from sqlalchemy.util import await_only

from shardkit.core.outcome import STALE_PLAN, may_have_moved
from shardkit.db.classify import kind_of
from shardkit.db.deadline import SHORTEST_S, left
from shardkit.db.leg import Leg
from shardkit.db.opening import BEGIN, READ_ONLY
from shardkit.db.wire import RoutedCursor
from shardkit.errors import ReadOnlyError, SessionError, ShardMovedError

Call = Callable[[Any, str, Any], None]


class _Routing:
    """What the sync and the async dialect share: SQLAlchemy runs both through the same, sync-looking, calls."""

    movable: ClassVar[type]
    dbapi: Any

    def do_execute(self, cursor: Any, statement: str, parameters: Any, context: Any = None) -> None:
        self._send(_execute, cursor, statement, parameters, context)

    def do_executemany(self, cursor: Any, statement: str, parameters: Any, context: Any = None) -> None:
        self._send(_executemany, cursor, statement, parameters, context)

    def do_execute_no_params(self, cursor: Any, statement: str, context: Any = None) -> None:
        self._send(_execute, cursor, statement, None, context)

    def _send(self, call: Call, cursor: Any, statement: str, parameters: Any, context: Any) -> None:
        driver = self.driver_of(cursor)
        leg: Leg | None = driver.leg
        if leg is None or context is None:
            call(cursor, statement, parameters)
            return
        _prepare(driver, context, statement)
        if leg.home is not None:
            leg = leg.renew() if leg.renew and driver.every and type(cursor) is self.movable else leg.home
            if leg.home is None:
                driver = self.change_road(context.root_connection, leg, cursor=cursor)
            else:
                driver.leg = leg
        driver.vetted = True
        began = perf_counter()
        try:
            call(cursor, leg.current(statement), parameters)
        except self.dbapi.Error as exc:
            driver.outdated |= exc.sqlstate in STALE_PLAN
            if leg.home is not None and (not getattr(exc, "timed_out", False) or left(1.0) > SHORTEST_S):
                self.change_road(context.root_connection, leg.home, cursor=cursor).fresh = False
                self._send(call, cursor, statement, parameters, context)
                return
            if driver.last and driver.closed:
                _in_commit(exc, driver)
            onward = self._onward(driver, leg, exc.sqlstate, late=getattr(exc, "timed_out", False))
            if onward is leg and type(cursor) is not self.movable:
                raise
            if onward is None:
                raise
            if driver.under_way or type(cursor) is not self.movable:
                raise ShardMovedError(
                    f"shard {leg.route.shard} moved from epoch {leg.route.epoch} to {onward.route.epoch} while this "
                    "transaction was open: nothing of it took effect, run the unit of work again"
                ) from exc
            driver = self.change_road(context.root_connection, onward, cursor=cursor)
            call(cursor, onward.current(statement), parameters)
        finally:
            driver.vetted = False
            _note_time(leg, began)
        driver.under_way = not driver.idle

    def _onward(self, driver: Any, leg: Leg, sqlstate: str | None, *, late: bool) -> Leg | None:
        """How to go on: at the shard's new epoch; on a fresh connection where this one had died in the pool; or once more where
        a table was changed since the statement was prepared. None: not.
        """
        if driver.closed:
            return None if late or driver.under_way or driver.fresh or driver.last else leg
        if sqlstate in STALE_PLAN:
            return None if driver.under_way or driver.last else leg
        return self._wait(lambda: leg.guide.onward(leg)) if may_have_moved(sqlstate) else None

    def change_road(self, connection: Any, leg: Leg, *, cursor: Any = None) -> Any:
        """Put *connection* and *cursor* on a connection to where *leg* leads; nothing was done on the old one."""
        old = connection._dbapi_connection
        before = old.driver_connection
        begin, every, single, last, asks = before.begin, before.every, before.single, before.last, before.asks
        tracked, marked, unannounced, wrote = before.tracked, before.marked, before.unannounced, before.wrote
        if before.closed:
            old._pool._invalidate(old)
        else:
            old.rollback()
        here = not before.closed and leg.engine.pool is old._pool
        new = old if here else leg.engine.raw_connection()
        driver: Any = new.driver_connection
        driver.begin, driver.single, driver.fresh = begin, single, before.closed
        driver.embark(leg, every=every, tracked=tracked, marked=marked)
        driver.last, driver.asks, driver.unannounced, driver.wrote = last, asks, unannounced, wrote
        if not here:
            connection._dbapi_connection = new
            if cursor is not None:
                self._rebase(cursor, new)
            old.close()
        options = connection.get_execution_options()
        if "schema_translate_map" in options:
            connection.execution_options(schema_translate_map={None: leg.route.schema})
        return driver

    def set_isolation_level(self, dbapi_connection: Any, level: str) -> None:
        """Keep *level* for BEGIN. AUTOCOMMIT is kept too, so that a routed session can refuse it."""
        self._driver(dbapi_connection).begin = {"AUTOCOMMIT": b"", "READ COMMITTED": BEGIN}.get(
            level, b"BEGIN ISOLATION LEVEL " + level.encode()
        )

    def reset_isolation_level(self, dbapi_connection: Any) -> None:
        """Back to READ COMMITTED for the next user."""
        self._driver(dbapi_connection).begin = BEGIN

    def do_begin(self, dbapi_connection: Any) -> None:
        """Nothing is sent: BEGIN goes with the first statement."""
        driver = self._driver(dbapi_connection)
        driver.pending = bool(driver.begin)

    def do_begin_twophase(self, connection: Any, xid: Any) -> None:  # noqa: ARG002  # SQLAlchemy's signature
        """Refused: nobody would end what a lost coordinator left prepared, and it would bar the shard's moves."""
        raise SessionError("two-phase transactions are refused on a routed session; nothing was sent")

    def do_rollback(self, dbapi_connection: Any) -> None:
        """ROLLBACK, where there is anything to undo. (psycopg takes a lock, and in asyncio a task switch, to find that out.)"""
        if not self._driver(dbapi_connection).at_rest:
            dbapi_connection.rollback()

    def do_commit(self, dbapi_connection: Any) -> None:
        """COMMIT; an error is marked as one of this phase, where the outcome can be unknown."""
        driver = self._driver(dbapi_connection)
        if driver.at_rest:  # it went with the last statement, or nothing was sent
            return
        leg, began = driver.leg, perf_counter()
        try:
            dbapi_connection.commit()
        except self.dbapi.Error as exc:
            _in_commit(exc, driver)
            raise
        finally:
            if leg is not None:
                _note_time(leg, began)

    @staticmethod
    def _driver(connection: Any) -> Any:
        return getattr(connection, "driver_connection", None) or getattr(connection, "_connection", connection)

    if TYPE_CHECKING:

        def driver_of(self, cursor: Any) -> Any: ...
        def _wait(self, ask: Callable[[], Leg | None]) -> Leg | None: ...
        def _rebase(self, cursor: Any, new: Any) -> None: ...


def _prepare(driver: Any, context: Any, statement: str) -> None:
    """Note on *driver* what has to be known about *statement* before it goes."""
    kind = kind_of(context.compiled, statement)
    driver.single = not kind.raw
    driver.wrote |= not kind.plain
    driver.asks = (driver.tracked and not kind.plain) or (driver.marked and bool(kind.cached))
    if not kind.lasting:
        driver.commit_xid = None
    if not statement.startswith("INSERT"):  # a flush may have to look for the row it replaces first
        driver.last = None
    if kind.changes_session and driver.pooled:
        raise SessionError(
            "this statement may change the session itself, and behind a pooler another tenant would get that session: "
            "it was not sent. Use SET LOCAL, SET TRANSACTION or a transaction-level lock"
        )
    driver.dirty |= kind.changes_session
    if kind.cached:
        driver.unannounced |= kind.inner if _is_announced(context.execution_options) else kind.cached
    if driver.every and not kind.plain:
        if kind.writes:
            raise ReadOnlyError("kit.read() is for reading: use kit.begin() or kit.session() to write")
        driver.every, driver.pending, driver.begin = False, True, READ_ONLY


def _is_announced(options: Any) -> bool:
    """Whether the session gathers the rows that a statement changes: a flush has a cache of statements of its own."""
    return "compiled_cache" in options or "shardkit_announced" in options


def _in_commit(exc: Any, driver: Any) -> None:
    """Mark an error as one of the COMMIT phase, with what is known for finding out what became of it."""
    exc.in_commit, exc.xid = True, driver.commit_xid
    exc.timeline, exc.life, exc.backend_pid = driver.timeline, driver.life, driver.backend_pid


def _note_time(leg: Leg, began: float) -> None:
    """Tell who counts how long the leg's shard took to answer, whatever it answered."""
    if leg.took is not None:
        leg.took((leg.route.shard, perf_counter() - began))


def _name_of(cursor: Any) -> tuple[str, ...]:
    name = getattr(cursor, "name", None)
    return () if name is None else (name,)


def _execute(cursor: Any, statement: str, parameters: Any) -> None:
    cursor.execute(statement, parameters)


def _executemany(cursor: Any, statement: str, parameters: Any) -> None:
    cursor.executemany(statement, parameters)


class _Preparer(PGIdentifierPreparer_psycopg):
    """Puts a shard's schema into a statement once per (statement, schema), not once per execution."""

    def _render_schema_translates(self, statement: str, schema_translate_map: Any, **options: Any) -> str:
        schema = schema_translate_map.get(None)
        others = (
            len(schema_translate_map) - 1 - ("_none" in schema_translate_map)
        )  # SQLAlchemy's own name for None: it adds that
        if schema is None or others or len(statement) > _RENDERED_LENGTH:
            return super()._render_schema_translates(statement, schema_translate_map, **options)
        key = (statement, schema)
        known = _rendered.get(key)
        if known is None:
            if len(_rendered) >= _RENDERED_MAX:
                _rendered.clear()
            known = _rendered[key] = super()._render_schema_translates(statement, schema_translate_map, **options)
        return known


_RENDERED_MAX, _RENDERED_LENGTH = 32_768, 4_096
_rendered: dict[tuple[str, str], str] = {}


class RoutedDialect(_Routing, PGDialect_psycopg):
    """``postgresql+shardkit``."""

    preparer = _Preparer

    supports_statement_cache = True
    movable = RoutedCursor

    def driver_of(self, cursor: Any) -> Any:
        """The routed connection under *cursor*."""
        return cursor._conn

    def _wait(self, ask: Callable[[], Leg | None]) -> Leg | None:
        return ask()

    def _rebase(self, cursor: Any, new: Any) -> None:
        cursor.__init__(new.driver_connection, *_name_of(cursor))

    @classmethod
    def get_async_dialect_cls(cls, url: Any) -> type[Any]:  # noqa: ARG003  # SQLAlchemy's signature
        """The same for asyncio."""
        return AsyncRoutedDialect


class AsyncRoutedDialect(_Routing, PGDialectAsync_psycopg):
    """The same for asyncio: a wait for the map runs in a thread, so that the loop goes on."""

    supports_statement_cache = True
    preparer = _Preparer
    movable = AsyncAdapt_psycopg_cursor

    def driver_of(self, cursor: Any) -> Any:
        """The routed connection under *cursor*."""
        return cursor._connection

    def _wait(self, ask: Callable[[], Leg | None]) -> Leg | None:
        return await_only(asyncio.to_thread(ask))

    def _rebase(self, cursor: Any, new: Any) -> None:
        cursor._cursor._closed = True  # nothing was opened on it, so there is nothing to be closed
        cursor.__init__(new.dbapi_connection, *_name_of(cursor))


registry.register("postgresql.shardkit", __name__, RoutedDialect.__name__)
