"""Connections of their own for statements over many shards of a server: prepared, planned once, reading only.

Measured on 256 branches: planning a wide UNION ALL costs ten times what running it does, and a parallel plan five times
what a plain one does. So statements stay prepared, with one generic plan, and without parallel workers.
"""

from __future__ import annotations

import os
import socket
import threading
from contextlib import suppress
from functools import lru_cache
from typing import Any, Final
from uuid import UUID

import psycopg
from sqlalchemy import create_engine

from shardkit.core.names import OPERATOR_ROLE, REFERENCE_SCHEMA
from shardkit.core.shardmap import Server, ShardMap
from shardkit.db import connect
from shardkit.settings import Settings

DIALECT: Final[Any] = create_engine("postgresql+psycopg://", paramstyle="numeric_dollar").dialect  # the engine connects nowhere
DriverError: Final = psycopg.Error
SCHEMA_MARK: Final = "__[SCHEMA__none]"
REFERENCE_MARK: Final = f"__[SCHEMA_{REFERENCE_SCHEMA}]"
SHARD_MARK: Final = "__[SHARD]"
PREPARED_MAX: Final = 64
"""Statements kept prepared on one connection: one over 128 schemas holds about a megabyte in the backend."""

_OPTIONS: Final = " ".join(
    f"-c {name}={value}"
    for name, value in {
        "role": OPERATOR_ROLE,
        "search_path": "",
        "default_transaction_read_only": "on",
        "max_parallel_workers_per_gather": "0",
        "jit": "off",
        "plan_cache_mode": "force_generic_plan",
        "client_connection_check_interval": "1000",  # a statement whose asker has given up ends by itself
    }.items()
)
_LOCAL: Final = (
    "SET LOCAL ROLE shardkit_operator; SET LOCAL search_path TO ''; SET LOCAL transaction_read_only = on;"
    " SET LOCAL max_parallel_workers_per_gather = 0; SET LOCAL jit = off"
)
_TEXT_ORDER: Final = (
    "SELECT CASE coalesce(to_jsonb(d)->>'datlocprovider', 'c') WHEN 'b' THEN true WHEN 'c' THEN datcollate IN"
    " ('C', 'POSIX', 'C.UTF-8', 'C.utf8') ELSE false END FROM pg_database d WHERE datname = current_database()"
)


class _Scatter:
    """What a fan-out's connection knows, in both colours."""

    code_points: bool = False
    """Whether this database orders text by code points, as Python does."""
    pooled: bool = False
    """Whether a pooler stands in between, so that settings last for a transaction only."""
    born: float = 0.0
    server: str = ""
    """The server's name."""


class ScatterConnection(_Scatter, psycopg.Connection[Any]):
    """A connection for statements over many shards."""


class AsyncScatterConnection(_Scatter, psycopg.AsyncConnection[Any]):
    """The same for asyncio."""


def connect_scatter(server: Server, settings: Settings, *, cluster_id: UUID) -> ScatterConnection:
    """A connection to *server* as operator, read only. Raises ServerDownError, WrongServerError, PoolTimeoutError."""
    connect.check_budget(server, settings)
    try:
        connection = ScatterConnection.connect(_conninfo(server, settings), autocommit=True, cursor_factory=psycopg.RawCursor)
    except psycopg.OperationalError as exc:
        raise connect.down(server, exc) from exc
    try:
        _tune(connection, server, settings)
        connect.check_identity(server, cluster_id, connection.execute(connect.IDENTITY).fetchone())
        row = connection.execute(_TEXT_ORDER).fetchone()
    except BaseException as exc:
        connection.close()
        raise connect.explained(server, exc) from exc
    connection.code_points = bool(row and row[0])
    return connection


async def connect_scatter_async(server: Server, settings: Settings, *, cluster_id: UUID) -> AsyncScatterConnection:
    """The same for asyncio."""
    connect.check_budget(server, settings)
    try:
        connection = await AsyncScatterConnection.connect(
            _conninfo(server, settings), autocommit=True, cursor_factory=psycopg.AsyncRawCursor
        )
    except psycopg.OperationalError as exc:
        raise connect.down(server, exc) from exc
    try:
        _tune(connection, server, settings)
        connect.check_identity(server, cluster_id, await (await connection.execute(connect.IDENTITY)).fetchone())
        row = await (await connection.execute(_TEXT_ORDER)).fetchone()
    except BaseException as exc:
        await connection.close()
        raise connect.explained(server, exc) from exc
    connection.code_points = bool(row and row[0])
    return connection


def cut(connection: ScatterConnection | AsyncScatterConnection) -> None:
    """End whatever *connection* waits for, now, from whatever thread: its owner gets an error and drops it."""
    with suppress(OSError, psycopg.Error):
        with socket.socket(fileno=os.dup(connection.pgconn.socket)) as wire:
            wire.shutdown(socket.SHUT_RDWR)


@lru_cache(1024)
def script(before: str, branch: str, after: str, branches: tuple[tuple[int, str], ...]) -> bytes:
    """*branch*, with its marks filled in for each (shard, schema), united between *before* and *after*.

    The text is made by our own compiler from a statement whose values are all parameters; schemas are ours (core.names).
    """
    filled = [branch.replace(SCHEMA_MARK, schema).replace(SHARD_MARK, f"{shard:d}") for shard, schema in branches]
    return f"{before}({') UNION ALL ('.join(filled)}){after}".encode()


class Idle:
    """Connections that wait for the next fan-out, by server; a forked child starts with none of its parent's."""

    def __init__(self, settings: Settings) -> None:
        self._lifetime_s = settings.connection_lifetime_s
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._waiting: dict[UUID, tuple[Server, list[Any]]] = {}
        """By server: what the map said of it when they were made, and the connections."""

    def take(self, server: Server, *, now: float) -> Any:
        """The connection used last, or None. Those too old are closed, and those of a server of which the map says something
        else now (it was promoted, it is somewhere else): nobody would ask for them again, and the budget counts them.
        """
        with self._lock:
            self._forget_parents()
            known, waiting = self._waiting.setdefault(server.server_id, (server, []))
            if known != server:
                self._waiting[server.server_id] = server, []
            while waiting:
                connection = waiting.pop()
                if known == server and not connection.closed and now - connection.born < self._lifetime_s:
                    return connection
                connection.pgconn.finish()
        return None

    def give(self, server: Server, connection: Any) -> None:
        """Keep *connection* for the next one."""
        with self._lock:
            known, waiting = self._waiting.setdefault(server.server_id, (server, []))
            if known == server:
                waiting.append(connection)
            else:
                connection.pgconn.finish()

    def keep(self, shardmap: ShardMap) -> None:
        """Close those to servers that *shardmap* does not have (any more), or not so."""
        with self._lock:
            self._forget_parents()
            for number, (known, waiting) in list(self._waiting.items()):
                if shardmap.servers.get(known.name) != known:
                    del self._waiting[number]
                    for connection in waiting:
                        connection.pgconn.finish()

    def _forget_parents(self) -> None:
        if self._pid != os.getpid():
            self._pid, self._waiting = os.getpid(), {}  # the parent's sockets: neither to use nor to close

    def clear(self) -> list[Any]:
        """All of them, to be closed."""
        with self._lock:
            found = [c for _, waiting in self._waiting.values() for c in waiting]
            self._waiting.clear()
        return found if self._pid == os.getpid() else []


def view() -> bytes:
    """Begin a transaction that sees, for all its statements, what is committed now."""
    return b"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; " + local_settings() + b"; SELECT pg_current_snapshot()"


def declared(number: int, statement: bytes) -> bytes:
    """Open a cursor over *statement*, a text of ``script``."""
    return b"DECLARE c%d NO SCROLL CURSOR FOR " % number + statement


def fetched(name: str, batch: int) -> bytes:
    """The next rows of a cursor of ``declared``."""
    return f"FETCH FORWARD {batch:d} FROM {name}".encode()


def missing_schemas() -> bytes:
    """Which of the schemas in an array are not there (any more)."""
    return b"SELECT name FROM unnest($1::text[]) AS name WHERE to_regnamespace(name) IS NULL"


def local_settings() -> bytes:
    """What a transaction begins with behind a pooler."""
    return _LOCAL.encode()


def _tune(connection: ScatterConnection | AsyncScatterConnection, server: Server, settings: Settings) -> None:
    connect.count_in(server, connection)
    connection.server = server.name
    connection.pooled = settings.pooler != "none"
    connection.prepare_threshold = None if connection.pooled else 5
    connection.prepared_max = PREPARED_MAX


def _conninfo(server: Server, settings: Settings) -> str:
    options = {"options": _OPTIONS} if settings.pooler == "none" else {}
    return connect.conninfo(connect.server_url(server, settings), settings, **options)
