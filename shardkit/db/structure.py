"""The real structure of many shards in one query of the server's catalog, and of a shard that a script would make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from shardkit.core.drift import Item, Key, structures
from shardkit.core.names import PROGRESS_TABLE, VERSION_TABLE, schema_name
from shardkit.db.shards import create_shard
from shardkit.db.steps import Connection
from shardkit.sql import statements

SCRATCH_SHARD: Final = 99_999  # no cluster has so many: 8192 is the limit
LEFT_OUT: Final = [VERSION_TABLE, f"{VERSION_TABLE}_pkc", PROGRESS_TABLE, f"{PROGRESS_TABLE}_pkey"]


def read_structures(connection: Connection, schemas: Sequence[str]) -> dict[str, dict[Key, Item]]:
    """What each of *schemas* is made of; one that is empty or missing has nothing."""
    with connection.transaction():
        connection.execute("SET LOCAL search_path TO ''")  # names are told alike, whatever path a login has
        rows = connection.execute(statements("drift")["structure"], {"schemas": list(schemas), "left_out": LEFT_OUT})
        found = structures(rows)
    return {schema: found.get(schema, {}) for schema in schemas}


def structure_of_script(connection: Connection, script: str) -> dict[Key, Item]:
    """What a new shard made by *script* would be; the server is left as it was."""
    schema = schema_name(SCRATCH_SHARD, 1)
    with connection.transaction(force_rollback=True):
        create_shard(connection, SCRATCH_SHARD, schema, script)
        return read_structures(connection, [schema])[schema]
