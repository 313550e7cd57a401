"""What shardkit puts on a server once: roles, identity, functions; all of it may be run again."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql

from shardkit.core.names import APP_ROLE, GLOBAL_SCHEMA, OPERATOR_ROLE
from shardkit.db.shard_objects import server_objects
from shardkit.errors import ClusterExistsError, SettingsError
from shardkit.sql import statements

SQL = statements("server")
_ROLES = {APP_ROLE: "role_app", OPERATOR_ROLE: "role_operator"}


def prepare_server(connection: psycopg.Connection[Any], *, cluster_id: UUID, server_id: UUID) -> None:
    """Roles, the schema ``shardkit`` with its functions, and the identity. Raises ClusterExistsError for a foreign one."""
    _roles(connection)
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(7105, 2)")
        connection.execute(SQL["base"])
        connection.execute(SQL["protect"])
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


def check_encoding(connection: psycopg.Connection[Any], name: str) -> None:
    """Python and SQL agree on a tenant's shard only where text is stored as UTF-8."""
    row = connection.execute(
        "SELECT pg_encoding_to_char(encoding) = 'UTF8' FROM pg_database WHERE datname = current_database()"
    )
    if row.fetchone() != (True,):
        raise SettingsError(f"the database of {name} is not encoded in UTF8, which shardkit needs; nothing was changed")


def same_database(connection: psycopg.Connection[Any]) -> object:
    """What is equal for two connections if, and only if, they lead to one database."""
    return connection.execute(
        "SELECT pg_postmaster_start_time(), current_setting('port'), oid FROM pg_database WHERE datname = current_database()"
    ).fetchone()


def _roles(connection: psycopg.Connection[Any]) -> None:
    """Our roles, which all databases of one PostgreSQL share; somebody else may make them at the same moment."""
    for (name,) in connection.execute(SQL["missing_roles"]).fetchall():
        try:
            connection.execute(SQL[_ROLES[name]])
        except (psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation):
            continue
    row = connection.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user").fetchone()
    if row and not row[0]:
        connection.execute(
            sql.SQL("GRANT {}, {} TO CURRENT_USER").format(sql.Identifier(APP_ROLE), sql.Identifier(OPERATOR_ROLE))
        )
