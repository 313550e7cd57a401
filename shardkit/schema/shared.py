"""Makes the tables that are not sharded: global ones in one place, reference ones there too and equal on every server."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import MetaData, Table

from shardkit.catalog.rows import load_map
from shardkit.core.names import GLOBAL_SCHEMA
from shardkit.db.connect import connect_admin, conninfo, server_url
from shardkit.db.reference import follow, prepare, publish, slot_name, wait_until_equal
from shardkit.orm.kinds import check_kinds, tables_of
from shardkit.schema.one import schema_engine
from shardkit.settings import Settings


def make_shared_tables(settings: Settings, metadata: MetaData, *, timeout_s: float = 60.0) -> tuple[list[str], list[str]]:
    """Make what is missing of the global and reference tables of *metadata*, everywhere; gives their names.

    Returns when every server has all rows. May be run again at any time: for new models, and after a server was added. It makes
    tables; it does not change those that are there. Needs the rights of a move (``REPLICATION``, ``pg_create_subscription``).
    Raises TableKindError before anything is done, DeadlineError when a server lags: then the work goes on by itself.
    """
    check_kinds(metadata)
    in_one_place, everywhere = tables_of(metadata, "global"), tables_of(metadata, "reference")
    with connect_admin(settings.catalog_url, settings) as written:
        shard_map = load_map(written)
        if everywhere:
            prepare(written)
        _create(settings.catalog_url, settings, [t for t in metadata.sorted_tables if t in {*in_one_place, *everywhere}])
        if everywhere:
            publish(written)
        for server in shard_map.servers.values() if everywhere else ():
            url, slot = server_url(server, settings), slot_name(server.server_id)
            with connect_admin(url, settings, name=f"server {server.name!r}") as connection:
                prepare(connection)
                _create(url, settings, _without_keys(everywhere))
                follow(connection, written, written_url=conninfo(settings.catalog_url, settings), slot=slot)
                wait_until_equal(connection, written, slot=slot, timeout_s=timeout_s)
    return [t.name for t in in_one_place], [t.name for t in everywhere]


def _create(url: str, settings: Settings, tables: Sequence[Table]) -> None:
    if tables:
        with schema_engine(url, GLOBAL_SCHEMA, settings) as engine, engine.begin() as connection:
            tables[0].metadata.create_all(connection, tables=list(tables))


def _without_keys(tables: Sequence[Table]) -> list[Table]:
    """Copies for followers: a foreign key is checked where rows are written, and could not be where they arrive."""
    metadata = MetaData()
    copies = [table.to_metadata(metadata) for table in tables]
    for copy in copies:
        copy.constraints -= copy.foreign_key_constraints
        for column in copy.columns:
            column.foreign_keys.clear()
    return copies
