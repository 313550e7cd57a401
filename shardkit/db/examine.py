"""Asks one server what the doctor wants to know; changes nothing, and holds no lock longer than a statement."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql

from shardkit.core.hashing import sql_shard_of
from shardkit.core.health.facts import (
    MisplacedFacts,
    MoveFacts,
    PreparedFacts,
    ProgramFacts,
    ReplicaFacts,
    RoleFacts,
    SchemaFacts,
    ServerFacts,
    SlotFacts,
    TableFacts,
    WaitingFacts,
)
from shardkit.core.moving import Step
from shardkit.core.names import APP_ROLE, FURNITURE, GUARD_TRIGGER, RELAY_SESSION, parse_gid, parse_program
from shardkit.core.shardmap import Server, ShardMap
from shardkit.db.connect import at, replica_url
from shardkit.db.pooler import is_pooled
from shardkit.db.servers import identity
from shardkit.errors import ShardKitError
from shardkit.settings import Settings
from shardkit.sql import statements

SQL: Final = statements("doctor")
SAMPLE_ROWS: Final = 50_000
CLOCK_TRIES: Final = 3
OUTBOXES_AT_ONCE: Final = 64
OUTBOX: Final = "shardkit_outbox"
CACHE_OUTBOX: Final = "shardkit_cache_outbox"
PATIENCE: Final = ("5s", "60s")
"""How long the doctor waits for a lock, and for an answer."""
Connection = psycopg.Connection[Any]


def examine(connection: Connection, server: Server, shardmap: ShardMap, settings: Settings) -> ServerFacts | str:
    """What *server* says, or why it is not the one the map means."""
    if identity(connection) != (shardmap.cluster_id, server.server_id):
        return "the database behind its DSN is not this server of this cluster"
    connection.execute("SELECT set_config('lock_timeout', %s, false), set_config('statement_timeout', %s, false)", PATIENCE)
    clock_s, clock_error_s = clock(connection)
    standbys, synchronous = _one(connection, "standbys")
    return ServerFacts(
        version=connection.info.server_version,
        settings=dict(_all(connection, "settings")),
        standbys=standbys,
        synchronous_standbys=synchronous,
        asynchronous_commit=tuple(who or "all" for (who,) in _all(connection, "asynchronous")),
        clock_s=clock_s,
        clock_error_s=clock_error_s,
        pooled=is_pooled(connection),
        roles=tuple(RoleFacts(name, tuple(powers), owns) for name, powers, owns in _all(connection, "roles")),
        tables=tuple(_tables(connection)),
        schemas=tuple(
            SchemaFacts(name, tables, guarded, tuple(missing), relations, widest)
            for name, tables, guarded, missing, relations, widest in _all(
                connection, "schemas", guard=GUARD_TRIGGER, furniture=list(FURNITURE)
            )
        ),
        functions_missing=tuple(name for (name,) in _all(connection, "functions")),
        slots=tuple(SlotFacts(*row) for row in _all(connection, "slots")),
        relays=_all(connection, "relays", session=RELAY_SESSION)[0][0],
        subscriptions=tuple(name for (name,) in _all(connection, "subscriptions")),
        publications=tuple(name for (name,) in _all(connection, "publications")),
        prepared=tuple(_prepared(connection, shardmap)),
        replicas=tuple(_replica(server, dsn, shardmap, settings) for dsn in server.replicas),
    )


def clock(connection: Connection) -> tuple[float, float]:
    """How far the clock of a server is ahead of ours, and how far that may be off: half of the quickest round trip."""
    found = []
    for _ in range(CLOCK_TRIES):
        began, at_s = time.monotonic(), time.time()
        (theirs,) = _one(connection, "clock")
        half = (time.monotonic() - began) / 2
        found.append((half, theirs - at_s - half))
    half, ahead = min(found)
    return ahead, half


def misplaced(
    connection: Connection, shardmap: ShardMap, shards: Sequence[int], *, timeout_s: float, thorough: bool
) -> tuple[tuple[MisplacedFacts, ...], tuple[str, ...]]:
    """Rows of *shards* that belong elsewhere, table by table, and tables that could not be read in time.

    Of a table with more than SAMPLE_ROWS rows a sample is read, unless *thorough*.
    """
    found, unread = [], []
    pins = {str(tenant): shard for tenant, shard in shardmap.pins.items()}
    for shard in shards:
        schema = shardmap.route(shard).schema
        for table, rows in _all(connection, "homes", schema=schema):
            share = 100.0 if thorough or rows <= SAMPLE_ROWS else 100.0 * SAMPLE_ROWS / rows
            ask = _strangers(shardmap, schema, table, whole=share == 100.0)
            given = {
                "shard": shard,
                "share": share,
                "here": [tenant for tenant, home in pins.items() if home == shard],
                "elsewhere": [tenant for tenant, home in pins.items() if home != shard],
            }
            try:
                with connection.transaction():
                    connection.execute("SET LOCAL row_security = off")
                    connection.execute(
                        "SELECT set_config('statement_timeout', %s, true)", (f"{max(1, round(timeout_s * 1000))}",)
                    )
                    row = connection.execute(ask, given).fetchone()
            except (psycopg.errors.QueryCanceled, psycopg.errors.UndefinedTable, psycopg.errors.InsufficientPrivilege):
                unread.append(f"{schema}.{table}")
                continue
            if row is not None and row[0]:
                found.append(MisplacedFacts(schema, table, row[0], share == 100.0))
    return tuple(found), tuple(unread)


def waiting(connection: Connection, schemas: Sequence[str]) -> tuple[WaitingFacts, ...]:
    """What waits in the outboxes of *schemas*, which have them."""
    found = []
    ask = sql.SQL("SELECT {}, {}, count(*), extract(epoch FROM clock_timestamp() - min(created_at))::float8 FROM {}")
    for first in range(0, len(schemas), OUTBOXES_AT_ONCE):
        parts = [
            ask.format(sql.Literal(schema), sql.Literal(table == CACHE_OUTBOX), sql.Identifier(schema, table))
            for schema in schemas[first : first + OUTBOXES_AT_ONCE]
            for table in (OUTBOX, CACHE_OUTBOX)
        ]
        with connection.transaction():
            connection.execute("SET LOCAL row_security = off")
            rows = connection.execute(sql.SQL(" UNION ALL ").join(parts), prepare=False).fetchall()
        found += [WaitingFacts(schema, of_cache, count, oldest_s) for schema, of_cache, count, oldest_s in rows if count]
    return tuple(found)


def _strangers(shardmap: ShardMap, schema: str, table: str, *, whole: bool) -> sql.Composed:
    """The statement that counts rows of a table whose tenants' shard is another one; a pin wins over the hash."""
    column = "tenant_id::text" if shardmap.tenant_type == "str" else "tenant_id::bigint"
    home: Any = sql_shard_of(column, tenant_type=shardmap.tenant_type, shard_count=shardmap.shard_count)
    sample = sql.SQL("") if whole else sql.SQL(" TABLESAMPLE SYSTEM (%(share)s)")
    return sql.SQL(
        "SELECT count(*) FROM {}{} WHERE CASE WHEN tenant_id::text = ANY (%(here)s) THEN false "
        "WHEN tenant_id::text = ANY (%(elsewhere)s) THEN true ELSE {} <> %(shard)s END"
    ).format(sql.Identifier(schema, table), sample, sql.SQL(home))


def running_programs(catalog: Connection) -> tuple[ProgramFacts, ...]:
    """Programs whose sessions at the catalog say which map they have."""
    found = [(parse_program(name), address) for name, address in _all(catalog, "programs", like="% map=% budget=%")]
    return tuple(ProgramFacts(parsed[0], address, parsed[1], parsed[2]) for parsed, address in found if parsed)


def open_moves(catalog: Connection) -> tuple[MoveFacts, ...]:
    """Moves that have not ended; none in a catalog that is older than the journal."""
    try:
        rows = _all(catalog, "moves")
    except psycopg.errors.UndefinedTable:
        return ()
    return tuple(
        MoveFacts(id_, shard, source, target, Step.of(step), held, idle_s, problem, tenant, into)
        for id_, shard, source, target, step, problem, tenant, into, held, idle_s in rows
    )


def catalog_revision(catalog: Connection) -> str:
    """The revision of the catalog's tables."""
    row = _one(catalog, "revision")
    return str(row[0]) if row else ""


def _tables(connection: Connection) -> Iterator[TableFacts]:
    with connection.transaction():
        connection.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(APP_ROLE)))
        suspects = _all(connection, "tables")
    for schema, table, active, ours, others in suspects:
        yield TableFacts(schema, table, active, ours, tuple(others))
    for schema, view in _all(connection, "views"):
        yield TableFacts(schema, view, active=True, ours=True, is_view=True)


def _prepared(connection: Connection, shardmap: ShardMap) -> Iterator[PreparedFacts]:
    for name, age_s in _all(connection, "prepared"):
        gid = parse_gid(name)
        ours = gid is not None and gid.cluster == shardmap.cluster_id.hex
        yield PreparedFacts(name, age_s, ours, overdue=gid is not None and ours and age_s > gid.patience_s)


def _replica(server: Server, dsn: str, shardmap: ShardMap, settings: Settings) -> ReplicaFacts:
    try:
        with at(replica_url(server, dsn, settings), settings, name="it") as connection:
            if identity(connection) != (shardmap.cluster_id, server.server_id):
                return ReplicaFacts(dsn, "it is a copy of another database")
            row = connection.execute("SELECT pg_is_in_recovery(), (SELECT count(*) FROM pg_stat_wal_receiver)").fetchone()
            standing: Mapping[bool, str] = (
                {not row[0]: "it is no standby", row[0] and not row[1]: "it receives nothing"} if row else {}
            )
            return ReplicaFacts(dsn, standing.get(True), *clock(connection))
    except ShardKitError as exc:
        return ReplicaFacts(dsn, str(exc.args[0]).partition(";")[0])


def _all(connection: Connection, name: LiteralString, **parameters: Any) -> list[Any]:
    return connection.execute(SQL[name], parameters, prepare=False).fetchall()


def _one(connection: Connection, name: LiteralString) -> Any:
    return connection.execute(SQL[name], {}, prepare=False).fetchone()
