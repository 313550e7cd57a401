"""Finds what would make it fail to carry one tenant out of its shard, before a byte is copied."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final, Protocol

from psycopg import sql

from shardkit.core.shardmap import ShardMap
from shardkit.db.shard_objects import shard_objects
from shardkit.move import checks
from shardkit.move.checks import Finding, Site
from shardkit.move.ends import End
from shardkit.move.share import Share
from shardkit.move.share import survey as carving_of
from shardkit.move.structure import AFTER_ROWS, Part, Table, create_schema
from shardkit.sql import statements

SQL: Final = statements("isolate")


class Leaving(Protocol):
    """What is known of the tenant that is to leave."""

    shard: int
    into_shard: int
    schema: str
    into: str
    next_into: str
    journal: Any
    options: Any

    @property
    def share(self) -> Share:
        """What goes along."""
        ...

    def tables(self) -> list[Table]:
        """The tables that go along."""
        ...

    def structure(self) -> list[Part]:
        """What the shard is made of, in the target's names."""
        ...


def site_of(source: End, target: End, leaving: Leaving) -> Site:
    """What is to be carried, as it is now: tables with the sizes of the tenant's own part."""
    tables = [_measured(source, leaving, table) for table in leaving.tables()]
    epoch = int(leaving.schema.rpartition("_e")[2])
    options = leaving.options
    return Site(source, target, leaving.shard, epoch, (), tables, options.slot_timeout_s, options.wal_limit, options.limits)


def survey(site: Site, leaving: Leaving, shardmap: ShardMap) -> list[Finding]:
    """All findings. Raises where the servers are not those of the map, or may not be used."""
    checks.check_ends(site, shardmap)
    source, target = site.source, site.target
    carving = carving_of(source, site.schema, whole=leaving.journal.move.options.get("whole", ()))
    found = [Finding(what, remedy) for what, remedy in carving.refused]
    found += checks.of_servers(site)
    for schema in (leaving.into, leaving.next_into):
        found += checks.leftover(target, schema)
    if target.on().execute(SQL["may_replicate"]).fetchone() != (True,):
        found.append(
            Finding(
                f"the login on server {target.name!r} may not write without triggers, as a subscription does",
                "GRANT SET ON PARAMETER session_replication_role TO it",
            )
        )
    found += [
        Finding(
            f"table {table.name} has a replica identity without tenant_id: changes of all tenants are listened to",
            f"ALTER TABLE ... REPLICA IDENTITY USING INDEX {table.name}_tenant_key, if there are very many",
            refuses=False,
        )
        for table in site.tables
        if leaving.share.columns[table.name] is not None and not leaving.share.filters(table)
    ]
    for (name,) in source.on().execute(SQL["materialized_views"], {"schema": site.schema}):
        remedy = "REFRESH it in the old shard after `moves finish`"
        found.append(Finding(f"materialized view {name} shows what it was made of", remedy, refuses=False))
    if not any(finding.refuses for finding in found):
        structure = leaving.structure()
        parts = [
            create_schema(leaving.into),
            *ids_of(leaving.into_shard, leaving.into),
            *(part for part in structure if part.phase != AFTER_ROWS),
            *(part for part in structure if part.phase == AFTER_ROWS),
        ]
        found += checks.rehearse(target.on(), parts)
    return found


def ids_of(shard: int, schema: str) -> list[Part]:
    """How *shard* makes ids, as parts of its structure."""
    return [Part(1, "ids", schema, shard_objects(shard, schema).as_string(None))]


def _measured(end: End, leaving: Leaving, table: Table) -> Table:
    """*table* with the number and bytes of the rows that go along."""
    asked = sql.SQL("SELECT count(*), coalesce(sum(pg_column_size(t.*)), 0)::bigint FROM {} t")
    row = end.on().execute(asked.format(leaving.share.rows(leaving.schema, table))).fetchone()
    assert row is not None
    return replace(table, rows=row[0], size=row[1])
