"""Makes one shard: its schema, its ids, and what the program keeps in it, in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg import sql

from shardkit.core.names import APP_ROLE, OPERATOR_ROLE
from shardkit.db.shard_objects import own_tables, shard_objects, shard_tables


def create_shard(connection: psycopg.Connection[Any], shard: int, schema: str, script: str) -> bool:
    """Make *schema* for *shard* and run *script* in it; False if it was there already.

    *script* is the program's own DDL with unqualified names (a Blueprint): part of the program, like its code.
    """
    try:
        with connection.transaction():
            if _is_there(connection, schema):
                return False
            rights = sql.SQL("CREATE SCHEMA {0}; GRANT USAGE ON SCHEMA {0} TO {1}, {2};").format(
                *map(sql.Identifier, (schema, APP_ROLE, OPERATOR_ROLE))
            )
            path = sql.SQL(";\nSET LOCAL search_path TO {};\n").format(sql.Identifier(schema))
            ours = sql.SQL(";\n").join([shard_objects(shard, schema), shard_tables(schema)])
            everything = (rights + ours + path).as_bytes(connection) + script.encode()
            connection.execute(everything)
    except (psycopg.errors.DuplicateSchema, psycopg.errors.UniqueViolation):
        if _is_there(connection, schema):  # somebody else made it at the same moment, and has committed
            return False
        raise
    return True


def lacking_tables(connection: psycopg.Connection[Any], schemas: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Our own tables that are missing, by schema: shards made by an older release have fewer. A schema that is not there
    lacks nothing.
    """
    wanted = list(own_tables())
    # Counted before they are looked at: nearly all have all, and joined at once each table met each schema of the server.
    rows = connection.execute(
        "SELECT nspname, ARRAY(SELECT relname::text FROM pg_class WHERE relnamespace = n.oid AND relkind = 'r') "
        "FROM pg_namespace n WHERE nspname = ANY(%(schemas)s) AND oid NOT IN ("
        "SELECT relnamespace FROM pg_class WHERE relname = ANY(%(wanted)s) AND relkind = 'r' "
        "GROUP BY relnamespace HAVING count(*) = %(count)s)",
        {"schemas": list(schemas), "wanted": wanted, "count": len(wanted)},
    )
    return {schema: tuple(table for table in wanted if table not in there) for schema, there in rows}


def mend_shard(connection: psycopg.Connection[Any], schema: str, tables: Sequence[str]) -> None:
    """Make our own *tables* that are missing in *schema*; all of them or none."""
    with connection.transaction():
        connection.execute(shard_tables(schema, tables))


def _is_there(connection: psycopg.Connection[Any], schema: str) -> bool:
    return connection.execute("SELECT to_regnamespace(%s)", (schema,)).fetchone() != (None,)
