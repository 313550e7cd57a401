"""Asks one server how it does: cheap enough for every second, and never waiting for somebody's lock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import psycopg

from shardkit.core.names import parse_schema
from shardkit.core.pulse import ServerPulse, ShardPulse, StandbyPulse
from shardkit.core.shardmap import Server, ShardMap
from shardkit.db.connect import connect_admin, server_url
from shardkit.db.servers import identity
from shardkit.errors import ServerDownError, WrongServerError
from shardkit.settings import Settings
from shardkit.sql import statements

SQL: Final = statements("pulse")
PATIENCE: Final = {"lock_timeout": "100ms", "statement_timeout": "5s", "default_transaction_read_only": "on"}


def blank(server: Server, shardmap: ShardMap, problem: str | None = None) -> ServerPulse:
    """What the map says of *server*, and nothing else."""
    placed = len(shardmap.shards_on(server.name))
    return ServerPulse(name=server.name, state=server.state.value, weight=server.weight, placed=placed, problem=problem)


def connect_watcher(server: Server, shardmap: ShardMap, settings: Settings) -> psycopg.Connection[Any]:
    """A connection for asking again and again. Raises ServerDownError, WrongServerError."""
    connection = connect_admin(server_url(server, settings), settings, name="it")
    try:
        if identity(connection) != (shardmap.cluster_id, server.server_id):
            raise WrongServerError("the database behind its DSN is not this server of this cluster")
        for setting, value in PATIENCE.items():
            connection.execute("SELECT set_config(%s, %s, false)", (setting, value))
    except BaseException:
        connection.close()
        raise
    return connection


def ask_server(connection: psycopg.Connection[Any], server: Server, shardmap: ShardMap) -> ServerPulse:
    """How *server* does. Raises ServerDownError."""
    names = {shardmap.route(shard).schema: shard for shard in shardmap.shards_on(server.name)}
    try:
        release, size, connections, most, prepared, retained = connection.execute(SQL["server"]).fetchone() or (None,) * 6
        standbys = connection.execute(SQL["standbys"]).fetchall()
        rows = _shards(connection, list(names))
    except psycopg.OperationalError as exc:
        raise ServerDownError(f"it failed or went away: {str(exc).strip().partition(chr(10))[0]}") from exc
    shards = [ShardPulse(names[name], _epoch(name), size, reads, writes) for name, size, reads, writes in rows]
    return replace(
        blank(server, shardmap),
        release=release,
        size_bytes=size,
        connections=connections,
        max_connections=most,
        prepared=prepared or 0,
        retained_bytes=retained or 0,
        standbys=tuple(StandbyPulse(*row) for row in standbys),
        shards=tuple(sorted(shards, key=lambda shard: shard.shard)),
    )


def _shards(connection: psycopg.Connection[Any], schemas: list[str]) -> list[Any]:
    """Sizes as they are on disk; where somebody locks a table, as the planner last saw them."""
    try:
        return connection.execute(SQL["shards"], {"schemas": schemas, "exact": True}).fetchall()
    except (psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled):
        return connection.execute(SQL["shards"], {"schemas": schemas, "exact": False}).fetchall()


def _epoch(schema: str) -> int:
    parsed = parse_schema(schema)
    assert parsed is not None  # the map made the name
    return parsed.epoch


def ask_catalog(catalog: psycopg.Connection[Any]) -> tuple[list[Any], Mapping[str, Any] | None]:
    """Rows of moves, and of the newest run of migrations."""
    try:
        moves = catalog.execute(SQL["moves"]).fetchall()
        row = catalog.execute(SQL["migration"]).fetchone()
    except psycopg.errors.UndefinedTable:  # a catalog of an older release: `shardkit doctor` says so
        return [], None
    names = ("run", "target", "state", "shards_done", "unfinished")
    return moves, dict(zip(names, row, strict=True)) if row else None
