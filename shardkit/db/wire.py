"""A transaction's opening travels in the same flight as its first statement.

``BEGIN``, the shard's ``search_path``, the tenant for row-level security and the first statement go to the server as one
libpq pipeline and come back together: one round trip, where a driver makes two or three. A read outside a transaction
is opened the same way without BEGIN; the settings then last for that one flight.

This is the only file that builds on psycopg's internals (3.3); ``self_check`` finds out at import whether they are there.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Generator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg import _queries, errors, generators, pq, waiting
from psycopg._cursor_base import BaseCursor
from psycopg._preparing import Prepare, PrepareManager

from shardkit.db.classify import changes_session
from shardkit.db.deadline import bounded, drop, left
from shardkit.db.opening import BEGIN, OPENING_PREPARES, READ_ONLY, Opening, ReplicaBehindError, ask_xid, send_commit

if TYPE_CHECKING:
    from shardkit.db.leg import Leg

FOREVER_S: Final = 86_400.0
_INTERVAL_S: Final = 0.1
IDLE: Final = pq.TransactionStatus.IDLE
_FATAL: Final = pq.ExecStatus.FATAL_ERROR
_POSITION: Final = b"SELECT pg_current_wal_insert_lsn()"
_UNKNOWN: Final = (None,) * 5


class _Query(_queries.PostgresQuery):
    """psycopg's query, with a conversion cache as large as shards times statements (its own holds 128 and then thrashes)."""

    __slots__ = ()

    def convert(self, query: Any, vars: Any) -> None:  # noqa: A002  # psycopg's name
        if vars is not None and isinstance(query, str) and len(query) <= _queries.MAX_CACHED_STATEMENT_LENGTH:
            self.query, self._want_formats, self._order, self._parts = _converted(query, self._tx.encoding)
            self.dump(vars)
        else:
            whole: Any = query
            super().convert(whole, vars)


@lru_cache(8192)
def _converted(query: str, encoding: str) -> Any:
    return _queries._query2pg_nocache(query.encode(encoding), encoding)


@dataclass(slots=True)
class Receipt:
    """Whether a COMMIT that went with a statement was answered; it goes along when the statement is led on elsewhere."""

    committed: bool = False


class Routed(psycopg.BaseConnection[Any]):
    """What a routed connection remembers, sync and async alike. The driver stays in autocommit: we send BEGIN ourselves."""

    leg: Leg | None = None
    """The routed unit of work that holds this connection."""
    begin: bytes = BEGIN  # how its transaction begins (isolation level)
    pending: bool = False
    """A transaction was begun, and BEGIN still has to go with the next statement."""
    every: bool = False
    """No transaction: the settings go with each statement, and last for that statement."""
    single: bool = False
    """The next text is known to be one statement, which may travel in a pipeline without parameters."""
    under_way: bool = False
    """A statement of this transaction has been answered; from now on it cannot change servers."""
    fresh: bool = False
    """This connection replaced one that had died in the pool."""
    call_timeout_s: float = 30.0
    """The longest one call may take, where no deadline is nearer."""
    last: Receipt | None = None
    """COMMIT goes with the next statement: it is the last of its transaction, and cannot be found wanting afterwards."""
    tracked: bool = False
    """Ask for the transaction's id with its first write, in the same flight, so that an unknown outcome can be settled."""
    marked: bool = False
    """Ask for it with the first write to a cached table: the markers have to name it before COMMIT."""
    asks: bool = False
    """Ask for it with the statement under way."""
    wrote: bool = False
    """A statement of this transaction may have written."""
    commit_xid: str | None = None
    """The id of the open transaction, or of the one that was being committed; forgotten when something is sent that could end
    it behind our back (SQL text, what does not come through the dialect)."""
    commit_lsn: str | None = None
    """A point of the server's log after the COMMIT, where the leg wants to know."""
    timeline: str | None = None
    """The server's timeline when this connection was made."""
    life: str | None = None
    """Since when the server has lived without a crash, as it says: ids of transactions that a crash took are given again."""
    backend_pid: int = 0
    pooled: bool = False
    """A pooler stands between: what is set outside a transaction reaches whoever gets the server's connection next."""
    opening_prepared: bool = False
    vetted: bool = False  # the statement under way comes through the dialect, which has looked at it
    outdated: bool = False
    """A prepared statement does not fit its tables any more: with the transaction's end all are prepared anew."""
    dirty: bool = False
    """Somebody changed the session itself; the pool closes such a connection instead of handing it on."""

    unannounced: frozenset[str] = frozenset()
    """Cached tables that statements of this transaction wrote to without saying which rows."""

    def embark(self, leg: Leg, *, every: bool, tracked: bool = False, marked: bool = False) -> None:
        """Carry *leg* from now on; its opening goes with the next statement, or with every one."""
        self.tracked, self.marked = tracked, marked
        self.leg, self.every, self.pending, self.under_way = leg, every, True, False
        self.wrote, self.commit_lsn, self.commit_xid = False, None, None

    def disembark(self) -> None:
        """Forget everything about the last unit of work."""
        self.leg, self.begin = None, BEGIN
        self.pending = self.every = self.single = self.under_way = self.fresh = False
        self.last = None
        self.vetted = False
        self.unannounced = frozenset()
        self.tracked = self.marked = self.asks = False
        self.commit_xid = None

    @classmethod
    def _connect_gen(cls, conninfo: str = "") -> Generator[Any, Any, Any]:
        connecting = super()._connect_gen(conninfo)
        return bounded(connecting, seconds=left(FOREVER_S))

    def _limit(self, timeout: float | None) -> float:
        return left(self.call_timeout_s) if timeout is None else timeout

    def _too_late(self, timeout: float | None, exc: BaseException) -> BaseException:
        """The error of a call that the deadline ended; a bound that psycopg gave itself stays psycopg's business."""
        if timeout is not None:
            return exc
        drop(self.pgconn)
        late = psycopg.OperationalError("the deadline passed before the server answered")
        late.timed_out = True  # type: ignore[attr-defined]  # our mark on the driver's error
        return late

    @property
    def silent(self) -> bool:
        """Whether nothing came unasked. A server that ended this connection has said so; then nothing must be risked on it."""
        poll = select.poll()
        poll.register(self.pgconn.socket, select.POLLIN | select.POLLHUP)
        return not poll.poll(0)

    @property
    def idle(self) -> bool:
        """Whether no transaction is open."""
        return self.pgconn.transaction_status == IDLE

    def _open_gen(self) -> Generator[Any, Any, None]:
        """Send the opening on its own, for what cannot travel with it (scripts, COPY, pipelines, server-side cursors)."""
        commands = [READ_ONLY if self.every else self.begin, *([self.leg.opening.command()] if self.leg else [])]
        self.pending = self.every = False
        if self._pipeline is not None:
            for command in commands:
                yield from self._exec_command(command)
            return
        self.pgconn.send_query(b";".join(commands))
        for result in (yield from generators.execute(self.pgconn)):
            if result.status == _FATAL:
                raise errors.error_from_result(result)

    @property
    def at_rest(self) -> bool:
        """Whether COMMIT and ROLLBACK have nothing to do."""
        return self.idle and self._pipeline is None and not self.outdated

    def _start_query(self) -> Generator[Any, Any, None]:
        if (self.pending or self.every) and self.idle:
            yield from self._open_gen()

    def _commit_gen(self) -> Generator[Any, Any, None]:
        """COMMIT; with it, where they are wanted, a tracked transaction's id (before it) and the log's position (after it)."""
        asks = self.tracked and self.commit_xid is None
        if not (asks or self._marks) or self._pipeline is not None or self.idle:
            yield from super()._commit_gen()
            self.commit_xid = None
            return
        wire = self.pgconn
        wire.enter_pipeline_mode()
        try:
            if asks:
                ask_xid(self, commits=True)
            follow = self._send_commit()
            wire.pipeline_sync()
            yield from generators.send(wire)
            answers = yield from self._answers_gen(asks + follow + 1, xid_at=asks - 1)
        finally:
            if wire.status == pq.ConnStatus.OK:
                wire.exit_pipeline_mode()
        for (answer,) in answers[: asks + 1]:
            if answer.status == _FATAL:
                raise errors.error_from_result(answer, encoding=wire._encoding)
        self.commit_xid = None
        self._keep_position(answers[asks + 1 : -1])

    @property
    def _marks(self) -> bool:
        return self.wrote and self.leg is not None and self.leg.replicated

    def _send_commit(self) -> int:
        """Queue COMMIT and, where replicas have to show what it wrote, the question how far the log is; how many answers."""
        send_commit(self)
        if not self._marks:
            return 1
        self.pgconn.send_query_params(_POSITION, None)
        return 2

    def _keep_position(self, answers: list[Any]) -> None:
        for (answer,) in answers:
            if answer.status == pq.ExecStatus.TUPLES_OK:
                self.commit_lsn = answer.get_value(0, 0).decode()

    def _answers_gen(self, count: int, *, xid_at: int = -1) -> Generator[Any, Any, list[Any]]:
        """The next *count* answers; the one numbered *xid_at* is the transaction's id, kept as soon as it is there."""
        answers: list[Any] = []
        while len(answers) < count:
            answers.append((yield from generators.fetch_many(self.pgconn)))
            if len(answers) == xid_at + 1 and answers[-1][0].status == pq.ExecStatus.TUPLES_OK:
                value = answers[-1][0].get_value(0, 0)
                self.commit_xid = value.decode() if value else None
        return answers

    def _rollback_gen(self) -> Generator[Any, Any, None]:
        """ROLLBACK, keeping prepared statements: PostgreSQL keeps them too, and psycopg's DEALLOCATE ALL costs a round trip."""
        self.commit_xid = None
        if self._pipeline is not None:
            yield from super()._rollback_gen()
            return
        if not self.idle:
            yield from self._exec_command(b"ROLLBACK")
        if self.outdated:
            self._prepared.clear()
            yield from self._prepared.maintain_gen(self)
            self.outdated = False

    def _deallocate(self, name: bytes | None) -> Generator[Any, Any, None]:
        """Psycopg's upkeep after DROP, ALTER and ROLLBACK TO; without a name all prepared statements go, also ours."""
        self.opening_prepared &= name is not None
        yield from super()._deallocate(name)


class _RoutedCursor(BaseCursor[Any, Any]):
    """A cursor whose first statement takes the opening along."""

    _query_cls: Any = _Query

    @property
    def description(self) -> Any:
        """Name and type of each column, as DB-API says; psycopg makes a Column object of each, for every execution."""
        result: Any = self.pgresult
        if result is None or not result.nfields:
            return super().description
        encoding = self._pgconn._encoding
        return [(result.fname(i).decode(encoding), result.ftype(i), *_UNKNOWN) for i in range(result.nfields)]

    def _execute_gen(
        self, query: Any, params: Any = None, *, prepare: bool | None = None, binary: bool | None = None
    ) -> Generator[Any, Any, None]:
        conn = self._conn
        if not conn.vetted:
            conn.dirty |= changes_session(query)
            conn.asks, conn.commit_xid = False, None
        leg = conn.leg
        opens = (conn.pending or conn.every) and conn.idle
        asks = conn.asks and conn.commit_xid is None
        if leg is None or not (opens or conn.last or asks) or not (params or conn.single) or conn._pipeline:
            yield from super()._execute_gen(query, params, prepare=prepare, binary=binary)
            return
        every, conn.pending, conn.every = conn.every, False, False
        yield from self._start_query(query)  # resets the cursor; nothing is pending now
        conn.every = every
        pgq = self._convert_query(query, params)
        yield from self._fly_gen(leg.opening if opens else None, pgq, asks=asks, prepare=prepare, binary=binary)
        self._last_query = query
        yield from conn._prepared.maintain_gen(conn)

    def _fly_gen(
        self, opening: Opening | None, query: Any, *, asks: bool, prepare: bool | None, binary: bool | None
    ) -> Generator[Any, Any, None]:
        conn, wire = self._conn, self._pgconn
        last: Receipt | None = conn.last
        prepares = opening is not None and conn.prepare_threshold is not None and not conn.opening_prepared
        prep, name = self._get_prepared(query, prepare)
        wire.enter_pipeline_mode()
        try:
            before = opened = opening.send(conn) if opening is not None else 0
            if prep is Prepare.NO:
                self._execute_send(query, force_extended=True, binary=binary)
            else:
                if prep is Prepare.SHOULD:
                    self._send_prepare(name, query)
                    before += 1
                self._send_query_prepared(name, query, binary=binary)
            if asks:
                ask_xid(conn, commits=last is not None)
            follow = conn._send_commit() if last is not None else 0
            wire.pipeline_sync()
            yield from generators.send(wire)
            commit_at, xid_at = before + 1 + asks, before + 1 if asks else -1
            answers = yield from conn._answers_gen(commit_at + follow + 1, xid_at=xid_at)  # the last one answers the sync
        finally:
            if wire.status == pq.ConnStatus.OK:
                wire.exit_pipeline_mode()
        for number, (answer,) in enumerate(answers[:before], 1):
            if answer.status == _FATAL:
                raise errors.error_from_result(answer, encoding=wire._encoding)
            if number == opened and opening is not None and opening.asks and answer.get_value(0, 0) != b"t":
                raise ReplicaBehindError("the replica has not replayed what this read has to see")
            if prepares and number == OPENING_PREPARES + (not conn.every):  # and stay prepared, whatever becomes of the rest
                conn.opening_prepared = True
        key = conn._prepared.maybe_add_to_cache(query, prep, name)
        results = answers[before]
        if key is not None:
            conn._prepared.validate(key, prep, name, results)
        self._check_results(results)
        if last is not None:
            (answer,) = answers[commit_at]
            if answer.status == _FATAL:
                failed: Any = errors.error_from_result(answer, encoding=wire._encoding)
                failed.in_commit = True
                raise failed
            last.committed = True
            conn._keep_position(answers[commit_at + 1 : -1])
        self._set_results(results)


class RoutedCursor(_RoutedCursor, psycopg.Cursor[Any]):
    """A psycopg cursor on a routed connection."""


class AsyncRoutedCursor(_RoutedCursor, psycopg.AsyncCursor[Any]):
    """A psycopg async cursor on a routed connection."""


class RoutedConnection(Routed, psycopg.Connection[Any]):
    """A psycopg connection that carries openings."""

    def wait(self, gen: Any, interval: float = _INTERVAL_S, timeout: float | None = None) -> Any:
        """Wait for the server, until the deadline at most."""
        try:
            return super().wait(gen, interval, timeout=self._limit(timeout))
        except errors._WaitTimeout as exc:
            raise self._too_late(timeout, exc) from exc


class AsyncRoutedConnection(Routed, psycopg.AsyncConnection[Any]):
    """A psycopg async connection that carries openings."""

    async def wait(self, gen: Any, interval: float = _INTERVAL_S, timeout: float | None = None) -> Any:
        """Wait for the server, until the deadline at most. A cancelled task drops the connection at once."""
        try:
            return await waiting.wait_async(gen, self.pgconn.socket, interval=interval, timeout=self._limit(timeout))
        except errors._WaitTimeout as exc:
            raise self._too_late(timeout, exc) from exc
        except (asyncio.CancelledError, KeyboardInterrupt):
            drop(self.pgconn)
            raise


def self_check() -> None:
    """Refuse to work on a psycopg whose internals are not the ones this file builds on."""
    wanted = {
        psycopg.Cursor: (
            "_execute_gen",
            "_start_query",
            "_get_prepared",
            "_execute_send",
            "_send_prepare",
            "_check_results",
        ),
        psycopg.Connection: ("_start_query", "_rollback_gen", "_exec_command", "_deallocate"),
        PrepareManager: ("maybe_add_to_cache", "validate", "maintain_gen"),
        generators: ("send", "fetch_many", "execute"),
        _queries: ("_query2pg_nocache", "MAX_CACHED_STATEMENT_LENGTH"),
    }
    missing = [f"{owner!r}.{name}" for owner, names in wanted.items() for name in names if not hasattr(owner, name)]
    if missing:
        raise ImportError(f"shardkit needs psycopg >=3.3,<3.4; {psycopg.__version__} has no {', '.join(missing)}")


self_check()
