"""A transaction's opening travels in the same flight as its first statement.

``BEGIN``, the shard's ``search_path``, the tenant for row-level security and the first statement go to the server as one
libpq pipeline and come back together: one round trip, where a driver makes two or three. A read outside a transaction
is opened the same way without BEGIN; the settings then last for that one flight.

Measured on one socket (p50, one row by key, row-level security on): 88 µs, against 135 µs for a bare autocommit SELECT
through psycopg without any setting, and 349 µs for BEGIN, SELECT, ROLLBACK.

This is the only file that builds on psycopg's internals (3.3); ``self_check`` finds out at import whether they are there.
"""

from __future__ import annotations

import select
from collections.abc import Generator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg import _queries, errors, generators, pq, sql
from psycopg._preparing import Prepare, PrepareManager

if TYPE_CHECKING:
    from shardkit.db.leg import Leg

BEGIN: Final = b"BEGIN"
COMMIT: Final = b"COMMIT"
READ_ONLY: Final = b"BEGIN READ ONLY"
IDLE: Final = pq.TransactionStatus.IDLE
_FATAL: Final = pq.ExecStatus.FATAL_ERROR
_SETTINGS: Final = b"SELECT set_config('search_path', $1, true), set_config('shardkit.tenant', $2, true)"
_SETTINGS_NAME: Final = b"_shardkit_open"
_BEGIN_NAME: Final = b"_shardkit_begin"
_COMMIT_NAME: Final = b"_shardkit_commit"
_TEXT_OID: Final = 25
_UNKNOWN: Final = (None,) * 5


@dataclass(frozen=True, slots=True)
class Opening:
    """The settings of a unit of work: where unqualified names are looked up, who reads, and as which role."""

    schema: bytes
    tenant: bytes = b""
    role: bytes | None = None

    def send(self, connection: _Routed) -> int:
        """Queue BEGIN and the settings in the pipeline of *connection*; the number of results they will give."""
        wire, prepared, count = connection.pgconn, connection.prepare_threshold is not None, 1
        if not connection.every:
            if connection.opening_prepared and connection.begin == BEGIN:
                wire.send_query_prepared(_BEGIN_NAME, None)
            else:
                wire.send_query_params(connection.begin, None)
            count += 1
        if prepared and not connection.opening_prepared:  # after BEGIN: a snapshot taken before it would fix the isolation level
            wire.send_prepare(_BEGIN_NAME, BEGIN)
            wire.send_prepare(_COMMIT_NAME, COMMIT)
            wire.send_prepare(_SETTINGS_NAME, _SETTINGS, param_types=[_TEXT_OID, _TEXT_OID])
            count += 3
        if self.role is not None:
            wire.send_query_params(b"SET LOCAL ROLE " + self.role, None)
            count += 1
        if prepared:
            wire.send_query_prepared(_SETTINGS_NAME, [self.schema, self.tenant])
        else:
            wire.send_query_params(_SETTINGS, [self.schema, self.tenant], param_types=[_TEXT_OID, _TEXT_OID])
        return count

    def commands(self) -> list[bytes]:
        """The settings as SQL, for a first statement that they cannot travel with."""
        settings = sql.SQL("SELECT set_config('search_path', {}, true), set_config('shardkit.tenant', {}, true)").format(
            sql.Literal(self.schema.decode()), sql.Literal(self.tenant.decode())
        )
        role = [] if self.role is None else [b"SET LOCAL ROLE " + self.role]
        return [*role, settings.as_bytes(None)]


class _Query(_queries.PostgresQuery):
    """psycopg's query, with a conversion cache as large as shards times statements (its own holds 128 and then thrashes)."""

    __slots__ = ()

    def convert(self, query: Any, vars: Any) -> None:  # noqa: A002  # psycopg's name
        if vars is not None and isinstance(query, str) and len(query) <= _queries.MAX_CACHED_STATEMENT_LENGTH:
            self.query, self._want_formats, self._order, self._parts = _converted(query, self._tx.encoding)
            self.dump(vars)
        else:
            super().convert(query, vars)


@lru_cache(8192)
def _converted(query: str, encoding: str) -> Any:
    return _queries._query2pg_nocache(query.encode(encoding), encoding)


class _Routed:
    """What a routed connection remembers, sync and async alike. The driver stays in autocommit: we send BEGIN ourselves."""

    if TYPE_CHECKING:
        pgconn: Any
        prepare_threshold: int | None
        _pipeline: Any
        _prepared: PrepareManager

    leg: Leg | None = None
    """The routed unit of work that holds this connection."""
    begin: bytes = BEGIN
    """How its transaction begins (isolation level)."""
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
    last: bool = False
    """COMMIT goes with the next statement: it is the last of its transaction, and cannot be found wanting afterwards."""
    committed: bool = False
    """COMMIT went with a statement, and was answered."""
    opening_prepared: bool = False
    dirty: bool = False
    """Somebody changed the session itself; the pool closes such a connection instead of handing it on."""

    unannounced: frozenset[str] = frozenset()
    """Cached tables that statements of this transaction wrote to without saying which rows."""

    def embark(self, leg: Leg, *, every: bool) -> None:
        """Carry *leg* from now on; its opening goes with the next statement, or with every one."""
        self.leg, self.every, self.pending, self.under_way = leg, every, True, False

    def disembark(self) -> None:
        """Forget everything about the last unit of work."""
        self.leg, self.begin = None, BEGIN
        self.pending = self.every = self.single = self.under_way = self.fresh = self.last = self.committed = False
        self.unannounced = frozenset()

    @property
    def silent(self) -> bool:
        """Whether nothing came unasked. A server that ended this connection has said so; then nothing must be risked on it."""
        poll = select.poll()
        poll.register(self.pgconn.socket, select.POLLIN | select.POLLHUP)
        return not poll.poll(0)

    @property
    def idle(self) -> bool:
        """Whether no transaction is open."""
        return self.pgconn.transaction_status == IDLE  # type: ignore[no-any-return]

    def _open_gen(self) -> Generator[Any, Any, None]:
        """Send the opening on its own, for what cannot travel with it (scripts, COPY, pipelines, server-side cursors)."""
        commands = [READ_ONLY if self.every else self.begin, *(self.leg.opening.commands() if self.leg else ())]
        self.pending = self.every = False
        if self._pipeline is not None:
            for command in commands:
                yield from self._exec_command(command)  # type: ignore[attr-defined]
            return
        self.pgconn.send_query(b";".join(commands))
        for result in (yield from generators.execute(self.pgconn)):
            if result.status == _FATAL:
                raise errors.error_from_result(result)

    def _start_query(self) -> Generator[Any, Any, None]:
        if (self.pending or self.every) and self.idle:
            yield from self._open_gen()

    def _rollback_gen(self) -> Generator[Any, Any, None]:
        """ROLLBACK, keeping prepared statements: PostgreSQL keeps them too, and psycopg's DEALLOCATE ALL costs a round trip."""
        if self._pipeline is not None:
            yield from super()._rollback_gen()  # type: ignore[misc]
        elif not self.idle:
            yield from self._exec_command(b"ROLLBACK")  # type: ignore[attr-defined]

    def _deallocate(self, name: bytes | None) -> Generator[Any, Any, None]:
        """psycopg's upkeep after DROP, ALTER and ROLLBACK TO; without a name all prepared statements go, also ours."""
        self.opening_prepared &= name is not None
        yield from super()._deallocate(name)  # type: ignore[misc]


class _RoutedCursor:
    """A cursor whose first statement takes the opening along."""

    if TYPE_CHECKING:
        _conn: Any
        _pgconn: Any
        _last_query: Any
        pgresult: Any

    _query_cls: Any = _Query

    @property
    def description(self) -> Any:
        """Name and type of each column, as DB-API says; psycopg makes a Column object of each, for every execution."""
        result = self.pgresult
        if result is None or not result.nfields:
            return super().description  # type: ignore[misc]
        encoding = self._pgconn._encoding
        return [(result.fname(i).decode(encoding), result.ftype(i), *_UNKNOWN) for i in range(result.nfields)]

    def _execute_gen(
        self, query: Any, params: Any = None, *, prepare: bool | None = None, binary: bool | None = None
    ) -> Generator[Any, Any, None]:
        conn = self._conn
        leg = conn.leg
        opens = (conn.pending or conn.every) and conn.idle
        if leg is None or not (opens or conn.last) or not (params or conn.single) or conn._pipeline:
            yield from super()._execute_gen(query, params, prepare=prepare, binary=binary)  # type: ignore[misc]
            return
        every, conn.pending, conn.every = conn.every, False, False
        yield from self._start_query(query)  # type: ignore[attr-defined]  # resets the cursor; nothing is pending now
        conn.every = every
        pgq = self._convert_query(query, params)  # type: ignore[attr-defined]
        yield from self._fly_gen(leg.opening if opens else None, pgq, prepare=prepare, binary=binary)
        self._last_query = query
        yield from conn._prepared.maintain_gen(conn)

    def _fly_gen(
        self, opening: Opening | None, query: Any, *, prepare: bool | None, binary: bool | None
    ) -> Generator[Any, Any, None]:
        conn, wire = self._conn, self._pgconn
        last = conn.last
        prep, name = self._get_prepared(query, prepare)  # type: ignore[attr-defined]
        wire.enter_pipeline_mode()
        try:
            before = settings = opening.send(conn) if opening is not None else 0
            if prep is Prepare.NO:
                self._execute_send(query, force_extended=True, binary=binary)  # type: ignore[attr-defined]
            else:
                if prep is Prepare.SHOULD:
                    self._send_prepare(name, query)  # type: ignore[attr-defined]
                    before += 1
                self._send_query_prepared(name, query, binary=binary)  # type: ignore[attr-defined]
            if last:
                _send_commit(conn)
            wire.pipeline_sync()
            yield from generators.send(wire)
            answers = yield from _answers_gen(wire, before + last + 2)  # the last one is the answer to the sync
        finally:
            if wire.status == pq.ConnStatus.OK:
                wire.exit_pipeline_mode()
        for number, (answer,) in enumerate(answers[:before], 1):
            if answer.status == _FATAL:
                raise errors.error_from_result(answer, encoding=wire._encoding)
            if number == settings:  # whatever becomes of the statement, this one is prepared
                conn.opening_prepared = conn.prepare_threshold is not None
        key = conn._prepared.maybe_add_to_cache(query, prep, name)
        results = answers[before]
        if key is not None:
            conn._prepared.validate(key, prep, name, results)
        self._check_results(results)  # type: ignore[attr-defined]
        if last:
            (answer,) = answers[before + 1]
            if answer.status == _FATAL:
                failed = errors.error_from_result(answer, encoding=wire._encoding)
                failed.in_commit = True  # type: ignore[attr-defined]
                raise failed
            conn.committed = True
        self._set_results(results)  # type: ignore[attr-defined]


def _send_commit(conn: Any) -> None:
    if conn.opening_prepared:
        conn.pgconn.send_query_prepared(_COMMIT_NAME, None)
    else:
        conn.pgconn.send_query_params(COMMIT, None)


def _answers_gen(wire: Any, count: int) -> Generator[Any, Any, list[Any]]:
    answers: list[Any] = []
    while len(answers) < count:
        answers.append((yield from generators.fetch_many(wire)))
    return answers


class RoutedCursor(_RoutedCursor, psycopg.Cursor[Any]):
    """A psycopg cursor on a routed connection."""


class AsyncRoutedCursor(_RoutedCursor, psycopg.AsyncCursor[Any]):
    """A psycopg async cursor on a routed connection."""


class RoutedConnection(_Routed, psycopg.Connection[Any]):
    """A psycopg connection that carries openings."""


class AsyncRoutedConnection(_Routed, psycopg.AsyncConnection[Any]):
    """A psycopg async connection that carries openings."""


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
