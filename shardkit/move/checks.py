"""Finds what would make a move fail later, before a byte is copied; each finding says what to do about it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row

from shardkit.core.easing import Limits
from shardkit.core.names import schema_name
from shardkit.core.shardmap import Server, ServerState, ShardMap
from shardkit.db.servers import identity
from shardkit.errors import MoveRefusedError, WrongServerError
from shardkit.move.ends import End
from shardkit.move.options import MoveOptions
from shardkit.move.structure import AFTER_ROWS, SQL, Part, Table, create_schema, make, structure_of, tables_of
from shardkit.settings import is_loopback
from shardkit.sql import statements

CHECKS: Final = statements("checks")
OLDEST: Final = 150_000


@dataclass(frozen=True, slots=True)
class Finding:
    """Something found before a move. ``refuses``: the move would fail; else it is good to know."""

    what: str
    remedy: str
    refuses: bool = True


@dataclass(frozen=True, slots=True)
class Site:
    """What the checks look at. ``wal_limit`` is how much WAL the move may hold back on the source, in bytes."""

    source: End
    target: End
    shard: int
    epoch: int
    structure: Sequence[Part]
    tables: Sequence[Table]
    slot_timeout_s: float
    wal_limit: int
    limits: Limits

    @property
    def schema(self) -> str:
        """The shard's schema, on both sides."""
        return schema_name(self.shard, self.epoch)

    @property
    def size(self) -> int:
        """Bytes of the tables, with what belongs to them, without indexes."""
        return sum(table.size for table in self.tables)


def site_of(source: End, target: End, shard: int, epoch: int, options: MoveOptions) -> Site:
    """What is to be moved, as it is now."""
    schema, on = schema_name(shard, epoch), source.on()
    structure, tables = structure_of(on, schema), tables_of(on, schema)
    return Site(source, target, shard, epoch, structure, tables, options.slot_timeout_s, options.wal_limit, options.limits)


def survey(site: Site, shardmap: ShardMap) -> list[Finding]:
    """All findings. Raises where the servers are not those of the map, or may not be used."""
    check_ends(site, shardmap)
    return check(site)


def check_ends(site: Site, shardmap: ShardMap) -> None:
    """Raise where the servers are not those of the map, or may not be used."""
    for end in (site.source, site.target):
        _check_identity(end, shardmap.server(end.name), shardmap.cluster_id)
    state = shardmap.server(site.target.name).state
    if state is not ServerState.ACTIVE:
        raise MoveRefusedError(f"server {site.target.name!r} is {state.value}: it gets no shards; nothing was done")
    if not site.source.one("schema_exists", schema=site.schema):
        raise MoveRefusedError(
            f"server {site.source.name!r} has no schema {site.schema}: the map and the server disagree; nothing was done"
        )


def of_servers(site: Site) -> Iterator[Finding]:
    """What the two servers have against it, the contents of *site* and the room for them."""
    source, target = (_server(end) for end in (site.source, site.target))
    yield from (*_servers(site, source, target), *_contents(site), *_room(site, source, target))


def check(site: Site) -> list[Finding]:
    """All findings."""
    found = [*of_servers(site), *_leftovers(site)]
    if not any(finding.refuses for finding in found):
        found += [*_rehearse(site), *_reach(site)]
    return found


def refuse(findings: Sequence[Finding]) -> None:
    """Raise MoveRefusedError if any of *findings* refuses."""
    bad = [finding for finding in findings if finding.refuses]
    if bad:
        lines = "\n".join(f"  - {finding.what}: {finding.remedy}" for finding in bad)
        raise MoveRefusedError(f"the move was refused before anything was copied:\n{lines}\n")


def _check_identity(end: End, server: Server, cluster_id: UUID) -> None:
    """Raise WrongServerError unless the database behind *end* is *server*."""
    if identity(end.on()) != (cluster_id, server.server_id):
        raise WrongServerError(
            f"the database behind server {server.name!r} is not that server of this cluster: it was not used"
        )


def _server(end: End) -> dict[str, Any]:
    with end.on().cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(CHECKS["server"]).fetchone()
    assert row is not None
    return row


def _servers(site: Site, source: dict[str, Any], target: dict[str, Any]) -> Iterator[Finding]:
    for end, facts in ((site.source, source), (site.target, target)):
        name = f"server {end.name!r}"
        if facts["version"] < OLDEST:
            yield Finding(f"{name} has PostgreSQL {facts['version'] // 10_000}", "moves need 15 or later")
        if facts["standby"]:
            yield Finding(
                f"{name} is a standby", "correct its DSN: it must lead to the primary (target_session_attrs=read-write)"
            )
        if facts["wal_level"] != "logical":
            yield Finding(f"{name} has wal_level = {facts['wal_level']}", "set wal_level = logical and restart it")
        for what, setting, needed in (
            ("slots", "max_replication_slots", 2),
            ("senders", "max_wal_senders", 2),
            ("workers", "max_logical_replication_workers", 1),
        ):
            if facts[f"{what}_free"] < needed:
                yield Finding(
                    f"{name} has {max(0, facts[f'{what}_free'])} replication {what} free, and a move needs {needed}",
                    f"raise {setting}, or drop what is not used",
                )
        if facts["replication_role"] != "origin":  # only a superuser could set it for the session
            yield Finding(
                f"sessions on {name} begin with session_replication_role = {facts['replication_role']}",
                "ALTER ROLE … or ALTER DATABASE … RESET session_replication_role: triggers and foreign keys would not work",
            )
        if not facts["replication"]:
            yield Finding(
                f"the login on {name} may not replicate", "ALTER ROLE … REPLICATION (managed PostgreSQL has a role for it)"
            )
        if not (facts["superuser"] or facts["subscriber"]):
            yield Finding(
                f"the login on {name} may not subscribe",
                "GRANT pg_create_subscription TO it (PostgreSQL 16 and later; 15 needs a superuser)",
            )
        if not facts["creator"]:
            yield Finding(f"the login on {name} may not create schemas", "GRANT CREATE ON DATABASE … TO it")
        if facts["prepared"]:
            yield Finding(
                f"{name} has {facts['prepared']} prepared transactions",
                "commit or roll them back (pg_prepared_xacts): a slot would wait for them for ever",
            )
        if facts["oldest_write_s"] > site.slot_timeout_s:
            yield Finding(
                f"{name} has a write transaction that is open for {facts['oldest_write_s']:.0f} s",
                "end it (pg_stat_activity): making a replication slot waits for every open write transaction of the "
                "whole server",
            )
        if facts["event_triggers"]:
            yield Finding(
                f"{name} has event triggers ({facts['event_triggers']})",
                "they see the move's DDL; disable them if they mind",
                refuses=False,
            )
        if facts["synchronous_commit"] in ("off", "local"):
            yield Finding(
                f"{name} has synchronous_commit = {facts['synchronous_commit']}",
                "its writers may lose acknowledged writes in a crash, move or not",
                refuses=False,
            )
    if site.limits.any and not source["stats"]:
        yield Finding(
            f"the login on server {site.source.name!r} may not see how busy it is",
            "GRANT pg_read_all_stats TO it, for --max-lag and --max-source-load",
        )
    if target["version"] // 10_000 < source["version"] // 10_000:
        yield Finding(
            "the target's PostgreSQL is older than the source's",
            "upgrade it first: a structure may not fit into an older release",
        )
    if source["locale"] != target["locale"] or source["collation_version"] != target["collation_version"]:
        yield Finding(
            f"encoding or collation differ ({source['locale']} {source['collation_version']} / {target['locale']} "
            f"{target['collation_version']})",
            "indexes would sort otherwise: make the target's database with the same ones",
        )


def _contents(site: Site) -> Iterator[Finding]:
    for table in site.tables:
        if table.persistence != "p":
            yield Finding(f"table {table.name} is unlogged", "ALTER TABLE … SET LOGGED: unlogged tables are not replicated")
        if table.identity == "n" or not table.key:
            yield Finding(
                f"table {table.name} has no key by which its rows can be told apart",
                "add a primary key, or REPLICA IDENTITY USING INDEX of a unique index over NOT NULL columns",
            )
    for (what,) in site.source.on().execute(SQL["unknown_objects"], {"schema": site.schema}):
        yield Finding(f"{what} is of a kind that is not carried over", "make it outside of the shard, or do without it")
    for (name,) in site.source.on().execute(CHECKS["partitioned"], {"schema": site.schema}):
        yield Finding(
            f"table {name} is partitioned or inherits, which is not carried over",
            "make it a plain table: CREATE TABLE … (LIKE … INCLUDING ALL), INSERT … SELECT, rename; a shard is the partition",
        )
    questions = {
        "triggers": ("trigger {} fires for replicated rows as well", "ALTER TABLE … ENABLE TRIGGER … for the time of the move"),
        "bodies": (
            "function {} names the schema in its text or its SET",
            "leave the schema out: it gets a new name with every move, and sessions have it in their search_path",
        ),
        "half_made": ("unique index {} was not finished", "DROP INDEX it, or REINDEX INDEX CONCURRENTLY"),
        "strangers": ("{} lies outside of the shard and depends on it", "drop it, or move it into the shard"),
        "large_objects": (
            "column {} may name large objects, and this database has some",
            "use bytea: large objects are not replicated",
        ),
    }
    for question, (what, remedy) in questions.items():
        for (name,) in site.source.on().execute(CHECKS[question], {"schema": site.schema}):
            yield Finding(what.format(name), remedy)


def _leftovers(site: Site) -> Iterator[Finding]:
    for end, schema in (
        (site.target, site.schema),
        (site.target, schema_name(site.shard, site.epoch + 1)),
        (site.source, schema_name(site.shard, site.epoch + 1)),
    ):
        yield from leftover(end, schema)


def leftover(end: End, schema: str) -> Iterator[Finding]:
    """A finding if *end* has *schema*, which is to be made there."""
    if end.one("schema_exists", schema=schema):
        yield Finding(
            f"server {end.name!r} has a schema {schema} that no move of the journal made",
            "look what is in it; if it is not needed, drop it (was the catalog restored from an older backup?)",
        )


def _room(site: Site, source: dict[str, Any], target: dict[str, Any]) -> Iterator[Finding]:
    needed = 2 * site.size + (64 << 20)
    free = _free_bytes(site.target, target["data_directory"])
    if free is not None and free < needed:
        yield Finding(
            f"the target's disk has {free >> 20} MB free", f"make room for {needed >> 20} MB: rows, indexes and their WAL"
        )
    if source["wal_keep_mb"] >= 0 and source["wal_keep_mb"] << 20 < min(site.size, site.wal_limit):
        yield Finding(
            f"max_slot_wal_keep_size on the source is {source['wal_keep_mb']} MB",
            "raise it to the size of the shard at least: a slot that falls behind is lost, and the copy with it",
        )


def _free_bytes(end: End, directory: str | None) -> int | None:
    """Free space of a server on this machine; there is no way to ask PostgreSQL."""
    given = conninfo_to_dict(end.url)
    if not directory or not is_loopback(str(given.get("hostaddr") or given.get("host") or "localhost")):
        return None
    try:
        return shutil.disk_usage(directory).free
    except OSError:
        return None


def _rehearse(site: Site) -> Iterator[Finding]:
    """Make the whole structure on the target, and take it back: what is missing there shows now and not after the copy."""
    parts = [
        create_schema(site.schema),
        *(p for p in site.structure if p.phase != AFTER_ROWS),
        *(p for p in site.structure if p.phase == AFTER_ROWS),
    ]
    yield from rehearse(site.target.on(), parts)


def _reach(site: Site) -> Iterator[Finding]:
    """Whether the target can subscribe to the source, and for the way back the source to the target: tried, and undone."""
    for end, publisher, without in (
        (site.target, site.source, ""),
        (site.source, site.target, " (or move with --no-soak: without it the old place cannot follow)"),
    ):
        on, conninfo = end.on(), str(publisher.conninfo_of_subscription())
        subscribe = sql.SQL(
            "CREATE SUBSCRIPTION {} CONNECTION {} PUBLICATION shardkit_reach WITH (create_slot = false, copy_data = false, "
            "enabled = false, slot_name = NONE)"
        ).format(sql.Identifier(f"shardkit_reach_{on.info.backend_pid}"), sql.Literal(conninfo))
        try:
            with on.transaction(force_rollback=True):
                on.execute(subscribe)
        except psycopg.Error as exc:
            yield Finding(
                f"server {end.name!r} cannot subscribe to server {publisher.name!r}: {str(exc).strip().partition(chr(10))[0]}",
                f"let it reach that server under the URL of the settings (or the catalog), with the password in it{without}",
                refuses=not without,
            )


def rehearse(connection: psycopg.Connection[Any], parts: Sequence[Part]) -> Iterator[Finding]:
    """A finding where *parts* cannot be made; they are not made."""
    try:
        with connection.transaction(force_rollback=True):
            make(connection, parts)
    except MoveRefusedError as exc:
        what, _, remedy = str(exc.args[0]).rpartition(". ")
        yield Finding(what, remedy[:1].lower() + remedy[1:])
