"""What shardkit itself puts on a server and into a shard, beside the program's own tables: where ids are made.

All of it may be run again at any time: an id already given is never given twice by that.
"""

from __future__ import annotations

from collections.abc import Iterable

from psycopg.sql import SQL, Composed, Identifier, Literal

from shardkit.core import names
from shardkit.core.ids import EPOCH_MS
from shardkit.errors import NameRejectedError
from shardkit.sql import statements


def server_objects() -> list[Composed]:
    """Statements for each server, once: the schema ``shardkit`` and its ``next_id(ids, origin, shard)``.

    Roles that insert need ``USAGE`` on the schema.
    """
    ids = statements("ids")
    return [
        SQL(ids["server_schema"]).format(server_schema=Identifier(names.SERVER_SCHEMA)),
        SQL(ids["next_id"]).format(
            server_schema=Identifier(names.SERVER_SCHEMA),
            epoch_ms=Literal(EPOCH_MS),
            lock_class=Literal(names.ID_LOCK_CLASS),
        ),
    ]


def shard_objects(shard: int, schema: str) -> Composed:
    """Statements, sent as one, that give *schema* (it exists) its id sequences and ``next_id()`` for *shard*.

    Roles that insert need ``USAGE`` on the schema, and ``USAGE, UPDATE`` on its two sequences.
    """
    named = names.parse_schema(schema)
    if named is None or named.shard != shard:
        raise NameRejectedError(f"{schema!r} is not a schema of shard {shard!r}; nothing was changed")
    return SQL(statements("ids")["shard_ids"]).format(
        schema=Identifier(schema),
        server_schema=Identifier(names.SERVER_SCHEMA),
        ids=Identifier(names.ID_SEQUENCE),
        origin=Identifier(names.ID_ORIGIN_SEQUENCE),
        ids_name=Literal(f"{schema}.{names.ID_SEQUENCE}"),
        origin_name=Literal(f"{schema}.{names.ID_ORIGIN_SEQUENCE}"),
        shard=Literal(shard),
    )


def own_tables() -> tuple[str, ...]:
    """Names of the tables that shardkit keeps in every shard."""
    return tuple(statements("furniture"))


def shard_tables(schema: str, tables: Iterable[str] | None = None) -> Composed:
    """Statements, sent as one, that give *schema* our *tables* (all): keys unique over all shards, and effects on others."""
    furniture = statements("furniture")
    return SQL(";\n").join(
        SQL(furniture[table]).format(
            schema=Identifier(schema), app=Identifier(names.APP_ROLE), operator=Identifier(names.OPERATOR_ROLE)
        )
        for table in (furniture if tables is None else tables)
    )
