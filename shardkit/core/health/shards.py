"""Checks of what the shards hold: who may see which rows, whether every row is at home, and whether one copy only is open."""

from __future__ import annotations

from collections.abc import Iterator

from shardkit.core.health.facts import Facts, Finding, MoveFacts, ServerFacts
from shardkit.core.moving import Step
from shardkit.core.names import APP_ROLE, OPERATOR_ROLE, parse_schema, schema_name

TARGET_GUARDED_FROM = Step.STREAM  # once its structure stands
SOURCE_GUARDED_FROM = Step.SOAK  # once it follows


def roles(facts: Facts) -> Iterator[Finding]:
    """Our roles are there, and no more powerful than they should be."""
    for name, found in facts.answered().items():
        there = {role.name: role for role in found.roles}
        for wanted in (APP_ROLE, OPERATOR_ROLE):
            role = there.get(wanted)
            if role is None:
                yield Finding("roles", name, f"the role {wanted} is missing", "`shardkit doctor --fix` makes it")
                continue
            if role.powers:
                yield Finding(
                    "roles",
                    name,
                    f"the role {wanted} {' and '.join(role.powers)}: row-level security does not hold for it",
                    f"ALTER ROLE {wanted} NOLOGIN NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE; REVOKE its memberships",
                )
            if role.owns:
                yield Finding(
                    "roles",
                    name,
                    f"the role {wanted} owns {role.owns} tables of shards: policies do not hold for an owner",
                    f"REASSIGN OWNED BY {wanted} TO the login that migrates",
                )


def row_security(facts: Facts) -> Iterator[Finding]:
    """Row-level security is in force on every table of tenants' rows, as PostgreSQL itself says of the application role."""
    for name, found in facts.answered().items():
        for table in found.tables:
            where = f"{table.schema}.{table.table}"
            if table.is_view:
                yield Finding(
                    "row-security",
                    name,
                    f"the view {where} reads tenants' rows with its owner's rights: it shows every tenant's",
                    f"ALTER VIEW {where} SET (security_invoker = true), or revoke it from {APP_ROLE}",
                )
            elif not table.active or not table.ours:
                what = "is not in force" if not table.active else "has not the policy shardkit_tenant as it should be"
                yield Finding(
                    "row-security",
                    name,
                    f"row-level security of {where} {what}: SQL that forgets its WHERE sees other tenants' rows",
                    f"SELECT shardkit.protect('{where}')",
                )
            for policy in table.others:
                yield Finding(
                    "row-security",
                    name,
                    f"the policy {policy} of {where} lets the application role see more than its tenant's rows",
                    f"DROP POLICY {policy} ON {where}, or make it RESTRICTIVE",
                )


def schemas(facts: Facts) -> Iterator[Finding]:
    """The shards of the map are where it says, and nothing else that looks like one is there."""
    of_moves = {
        (server, shard)
        for move in facts.moves
        for server in (move.source, move.target)
        for shard in (move.shard, move.into_shard)
    }
    for name, found in facts.answered().items():
        expected = {facts.map.route(shard).schema for shard in facts.map.shards_on(name)}
        there = {schema.name for schema in found.schemas}
        missing = sorted(expected - there)
        if missing:
            yield Finding(
                "schemas",
                name,
                f"{len(missing)} shards of the map are missing: {_some(missing)}",
                "`shardkit moves list`, and resume what stopped; else restore them from a backup",
            )
        for schema in sorted(there - expected):
            shard = int(schema[1:].partition("_")[0])
            if (name, shard) not in of_moves:
                yield Finding(
                    "schemas",
                    name,
                    f"{schema} is in no map and belongs to no move: it was left over, or the catalog was restored",
                    f"look what is in it; if it is not needed, DROP SCHEMA {schema} CASCADE",
                    "risk",
                )


def copies(facts: Facts) -> Iterator[Finding]:
    """Of every shard one copy takes writes: the one in the map."""
    moves = {shard: move for move in facts.moves for shard in (move.shard, move.into_shard)}
    for name, found in facts.answered().items():
        for schema in found.schemas:
            parsed = parse_schema(schema.name)
            if parsed is None or parsed.shard not in facts.map.placements or not schema.tables:
                continue
            move, place = moves.get(parsed.shard), facts.map.placement(parsed.shard)
            if place.server == name and schema.name == schema_name(parsed.shard, place.epoch):
                if schema.guarded and move is None:
                    yield Finding(
                        "copies",
                        name,
                        f"{schema.guarded} tables of {schema.name}, the live copy of shard {parsed.shard}, refuse writes",
                        f"find out who put them there, then DROP TRIGGER shardkit_refuse_writes in {schema.name}",
                    )
            elif schema.guarded < schema.tables and not _unguarded_by_right(move, name):
                yield Finding(
                    "copies",
                    name,
                    f"{schema.name}, a copy of shard {parsed.shard} that the map does not name, takes writes in "
                    f"{schema.tables - schema.guarded} tables: whoever writes there is not read",
                    f"`shardkit moves list`: resume or finish its move; without one, compare it with the live copy on "
                    f"{place.server!r} and drop it",
                )


def _unguarded_by_right(move: MoveFacts | None, server: str) -> bool:
    """Whether the copy on *server* is one that a move makes or has just closed, and does not guard at this step."""
    if move is None:
        return False
    return move.step < (TARGET_GUARDED_FROM if server == move.target else SOURCE_GUARDED_FROM)


def rows(facts: Facts) -> Iterator[Finding]:
    """Every tenant's rows are in the tenant's shard, by the same hash in SQL."""
    for name, found in facts.answered().items():
        for misplaced in found.misplaced:
            yield Finding(
                "rows",
                name,
                f"{misplaced.rows} rows of {misplaced.schema}.{misplaced.table} belong to other shards"
                + ("" if misplaced.whole else " (in a sample)")
                + ": their tenants do not see them",
                "they were written past shardkit, or pinned away: move them with `shardkit export` and routed sessions, "
                "or pin the tenants to where their rows are",
            )
        if found.unread:
            yield Finding(
                "rows",
                name,
                f"{len(found.unread)} tables could not be read to the end in time: {_some(found.unread)}",
                "--row-timeout, at a quiet hour",
                "risk",
            )


def furniture(facts: Facts) -> Iterator[Finding]:
    """Every shard and server has what shardkit keeps there."""
    for name, found in facts.answered().items():
        if found.functions_missing:
            yield Finding(
                "furniture",
                name,
                f"the functions {_some(found.functions_missing)} are missing",
                "`shardkit doctor --fix` makes them",
            )
        yield from _bare(facts, name, found)


def _bare(facts: Facts, name: str, found: ServerFacts) -> Iterator[Finding]:
    expected = {facts.map.route(shard).schema for shard in facts.map.shards_on(name)}
    bare = [schema for schema in found.schemas if schema.missing and schema.name in expected]
    if bare:
        wanted = sorted({what for schema in bare for what in schema.missing})
        yield Finding(
            "furniture",
            name,
            f"{len(bare)} shards lack {_some(wanted)}: {_some([schema.name for schema in bare])}",
            "they were made by an older release, or something was dropped: ids, unique keys or effects fail there. "
            "`shardkit migrate upgrade` makes the tables; make a function or sequence that is gone as it is in another shard",
        )


def _some(names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
