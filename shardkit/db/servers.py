"""What shardkit puts on a server once: roles, identity, functions; all of it may be run again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import psycopg
from psycopg import sql

from shardkit.core.names import APP_ROLE, GLOBAL_SCHEMA, OPERATOR_ROLE, ShardSchema, parse_schema, schema_name
from shardkit.core.shardmap import ShardMap
from shardkit.db.shard_objects import server_objects
from shardkit.errors import ClusterExistsError, SettingsError
from shardkit.sql import statements

SQL = statements("server")
OLDEST_POSTGRES: Final = 15
_ROLES = {APP_ROLE: "role_app", OPERATOR_ROLE: "role_operator"}


def prepare_server(connection: psycopg.Connection[Any], *, cluster_id: UUID, server_id: UUID) -> None:
    """Roles, the schema ``shardkit`` with its functions, and the identity. Raises ClusterExistsError for a foreign one."""
    _roles(connection)
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(7105, 2)")
        connection.execute(SQL["base"])
        connection.execute(SQL["protect"])
        connection.execute(SQL["replicas"])
        for statement in server_objects():
            connection.execute(statement)
        connection.execute(
            sql.SQL("CREATE SCHEMA IF NOT EXISTS {0}; GRANT USAGE ON SCHEMA {0} TO {1}, {2}").format(
                *map(sql.Identifier, (GLOBAL_SCHEMA, APP_ROLE, OPERATOR_ROLE))
            )
        )
        found = connection.execute(SQL["read_identity"]).fetchone()
        if found is None:
            connection.execute(SQL["write_identity"], {"cluster_id": cluster_id, "server_id": server_id})
        elif tuple(found) != (cluster_id, server_id):
            raise ClusterExistsError("this database belongs to another cluster, or is another server; nothing was changed")


def identity(connection: psycopg.Connection[Any]) -> tuple[UUID, UUID] | None:
    """Cluster and server this database says it is, if it says so."""
    there = connection.execute(SQL["has_identity"]).fetchone()
    row = connection.execute(SQL["read_identity"]).fetchone() if there and there[0] else None
    return (row[0], row[1]) if row else None


def survey(connection: psycopg.Connection[Any], name: str) -> str:
    """Refuse a database that cannot be a server, before anything is changed; gives a mark that only this database has.

    Python and SQL agree on a tenant's shard only where text is stored as UTF-8.
    """
    row = connection.execute(SQL["place"]).fetchone()
    assert row is not None
    mark, major, encoding, may_create, has_roles, standby, may_take_roles = row
    wrong = {
        f"runs PostgreSQL {major}; shardkit needs {OLDEST_POSTGRES} or newer": major < OLDEST_POSTGRES,
        f"has encoding {encoding}; shardkit needs UTF8": encoding != "UTF8",
        "is a standby; give the URL of its primary": standby,
        "lets its login make no schemas; GRANT CREATE ON DATABASE to it": not may_create,
        f"has no roles {APP_ROLE} and {OPERATOR_ROLE}, and its login may not make them; grant it CREATEROLE": not has_roles,
        f"has roles {APP_ROLE} and {OPERATOR_ROLE} that its login cannot take on; GRANT them to it": not may_take_roles,
    }
    for problem, holds in wrong.items():
        if holds:
            raise SettingsError(f"the database of {name} {problem}; nothing was changed")
    return str(mark)


def forget_identity(connection: psycopg.Connection[Any], *, cluster_id: UUID) -> None:
    """Let this database go: it belongs to no cluster any more."""
    if identity(connection) is not None:
        connection.execute(SQL["forget_identity"], {"cluster_id": cluster_id})


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What a server says of itself: who it is, its size in bytes, its release, and the shard schemas it holds."""

    identity: tuple[UUID, UUID] | None
    size_bytes: int
    release: str
    schemas: frozenset[str]


def facts(connection: psycopg.Connection[Any], *, timeout_s: float) -> ServerFacts:
    """Ask a server about itself."""
    with connection.transaction():
        connection.execute("SELECT set_config('statement_timeout', %s, true)", (f"{max(1, round(timeout_s * 1000))}ms",))
        found = identity(connection)
        size = connection.execute(SQL["size"]).fetchone()
        schemas = connection.execute(SQL["shard_schemas"]).fetchall()
    assert size is not None
    return ServerFacts(found, size[0], size[1], frozenset(name for name, _ in schemas))


def tables_with_rows(connection: psycopg.Connection[Any], *, schema: str, tenant: str | int) -> list[str]:
    """Tables of *schema* that hold a row of *tenant*, by their column ``tenant_id``; other tables cannot be told."""
    found = []
    with connection.transaction():
        connection.execute("SET LOCAL row_security = off")
        for (table,) in connection.execute(SQL["scoped_tables"], {"schema": schema}).fetchall():
            has = sql.SQL("SELECT EXISTS (SELECT FROM {} WHERE tenant_id = %s)").format(sql.Identifier(schema, table))
            if connection.execute(has, (tenant,)).fetchone() == (True,):
                found.append(table)
    return found


def _roles(connection: psycopg.Connection[Any]) -> None:
    """Our roles, which all databases of one PostgreSQL share; somebody else may make them at the same moment."""
    for (name,) in connection.execute(SQL["missing_roles"]).fetchall():
        try:
            connection.execute(SQL[_ROLES[name]])
        except (psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation):
            continue
    for (name,) in connection.execute(SQL["roles_to_take"]).fetchall():
        connection.execute(sql.SQL("GRANT {} TO CURRENT_USER").format(sql.Identifier(name)))


def open_schemas(connection: psycopg.Connection[Any]) -> list[ShardSchema]:
    """The shards this server has, under the epoch that each is open (or follows) at."""
    found = (parse_schema(name) for name, _ in connection.execute(SQL["shard_schemas"]))
    return [schema for schema in found if schema is not None]


def close_left_behind(connection: psycopg.Connection[Any], shardmap: ShardMap, name: str) -> list[str]:
    """Close schemas of epochs that the map has left behind for another server, as the lost fence had: by renaming them.

    Others are let alone: the same epoch elsewhere is a move under way or a follower, an older one of a shard that the map
    places here is for a human to look at. Gives the names that were closed.
    """
    there, closed = open_schemas(connection), []
    for shard, epoch in there:
        place = shardmap.placements.get(shard)
        if place is None or place.server == name or epoch >= place.epoch or ShardSchema(shard, place.epoch) in there:
            continue
        before, after = schema_name(shard, epoch), schema_name(shard, place.epoch)
        connection.execute(sql.SQL("ALTER SCHEMA {} RENAME TO {}").format(sql.Identifier(before), sql.Identifier(after)))
        closed.append(before)
    return closed
