"""``shardkit doctor``: asks the catalog, every server, Redis and the running programs, and lets ``core.health`` judge.

It changes nothing. ``plan_fixes`` and ``fix`` are for what can be mended without a choice.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Final
from uuid import UUID

from shardkit.catalog.decisions import Decisions
from shardkit.catalog.overview import opened
from shardkit.catalog.resolver import resolve
from shardkit.catalog.rows import load_map
from shardkit.core.health import CHECKS, judge
from shardkit.core.health.facts import Facts, Finding, Limits, ServerFacts
from shardkit.core.names import APP_ROLE, OPERATOR_ROLE, parse_gid
from shardkit.core.shardmap import Server, ShardMap
from shardkit.db.connect import at, server_url
from shardkit.db.examine import catalog_revision, examine, misplaced, open_moves, running_programs, waiting
from shardkit.db.pooler import is_pooled
from shardkit.db.servers import prepare_server
from shardkit.errors import ServerError, SettingsError
from shardkit.settings import Settings

NEWS_S: Final = 1.0  # a program that was just told of a newer map gets its poll interval and this much to fetch it


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What was found by which checks. ``facts`` are what they judged."""

    findings: tuple[Finding, ...]
    checks: tuple[str, ...]
    facts: Facts


def chosen(only: Collection[str] = (), skip: Collection[str] = ()) -> tuple[str, ...]:
    """Names of the checks to run, in order. Raises SettingsError for a name that is none."""
    if unknown := sorted({*only, *skip} - CHECKS.keys()):
        raise SettingsError(f"no check is called {', '.join(unknown)}; there are {', '.join(CHECKS)}")
    return tuple(name for name in CHECKS if (not only or name in only) and name not in skip)


def diagnose(
    settings: Settings,
    *,
    checks: Collection[str] = tuple(CHECKS),
    row_timeout_s: float = 5.0,
    thorough: bool = False,
    backend_bytes: int = 256 << 20,
) -> Diagnosis:
    """Run *checks*. *row_timeout_s* for the rows of one table; *thorough* reads all rows, else of large tables a sample.

    Raises CatalogUnavailableError and NotInitializedError: without a map there is nothing to compare with.
    """
    limits = Limits(
        connection_budget=settings.connection_budget,
        fan_out_connections=settings.fan_out_connections,
        prepared_max=settings.prepared_max,
        pooled=settings.pooled,
        backend_bytes=backend_bytes,
    )
    with opened(settings) as catalog:
        shardmap, moves = load_map(catalog), open_moves(catalog)
        carried = {shard for move in moves if move.tenant is not None for shard in (move.shard, move.into_shard)}
        wanted = _Wanted("outbox" in checks, "rows" in checks, row_timeout_s, thorough, frozenset(carried))
        with ThreadPoolExecutor(max(1, min(16, len(shardmap.servers)))) as pool:
            asked = {name: pool.submit(_ask, server, shardmap, settings, wanted) for name, server in shardmap.servers.items()}
            servers = {name: answer.result() for name, answer in asked.items()}
        facts = Facts(
            map=shardmap,
            servers=_decided(settings, servers),
            limits=limits,
            moves=moves,
            programs=running_programs(catalog),
            cache_warnings=_cache_warnings(settings) if "redis" in checks else (),
            catalog_revision=_revisions(catalog) if "catalog" in checks else ("", ""),
            catalog_pooled=is_pooled(catalog),
        )
        if "programs" in checks:
            facts = _after_the_news(catalog, facts, settings.poll_interval_s + NEWS_S)
    return Diagnosis(judge(facts, checks=checks), tuple(checks), facts)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What is asked of a server beside what costs little. ``carried``: shards with rows of a tenant that is being isolated."""

    outboxes: bool
    rows: bool
    row_timeout_s: float
    thorough: bool
    carried: frozenset[int | None]


def _ask(server: Server, shardmap: ShardMap, settings: Settings, wanted: _Wanted) -> ServerFacts | str:
    try:
        with at(server_url(server, settings), settings, name="it") as connection:
            found = examine(connection, server, shardmap, settings)
            if isinstance(found, str):
                return found
            if wanted.outboxes:
                furnished = [schema.name for schema in found.schemas if not schema.missing]
                found = replace(found, waiting=waiting(connection, furnished))
            if wanted.rows:
                there = {schema.name for schema in found.schemas}
                mine = [
                    s for s in shardmap.shards_on(server.name) if shardmap.route(s).schema in there and s not in wanted.carried
                ]
                strangers, unread = misplaced(
                    connection, shardmap, mine, timeout_s=wanted.row_timeout_s, thorough=wanted.thorough
                )
                found = replace(found, misplaced=strangers, unread=unread)
            return found
    except ServerError as exc:
        return str(exc.args[0]).partition(";")[0]


def _decided(settings: Settings, servers: dict[str, ServerFacts | str]) -> dict[str, ServerFacts | str]:
    """*servers*, with what the record says of each of our prepared transactions."""
    if not any(part.ours for found in servers.values() if isinstance(found, ServerFacts) for part in found.prepared):
        return servers
    decisions = Decisions(settings)

    def outcome(gid: str) -> str | None:
        parsed = parse_gid(gid)
        return decisions.outcome(UUID(parsed.txn)) if parsed else None

    try:
        return {
            name: replace(
                found,
                prepared=tuple(replace(part, outcome=outcome(part.gid)) if part.ours else part for part in found.prepared),
            )
            if isinstance(found, ServerFacts)
            else found
            for name, found in servers.items()
        }
    finally:
        decisions.close()


def _after_the_news(catalog: Any, facts: Facts, patience_s: float) -> Facts:
    """*facts*, once every running program has the newest map, or has had the time to fetch it."""
    pause, deadline = threading.Event(), time.monotonic() + patience_s
    while any(program.version < facts.map.version for program in facts.programs) and time.monotonic() < deadline:
        pause.wait(0.1)
        facts = replace(facts, programs=running_programs(catalog))
    return facts


def _revisions(catalog: Any) -> tuple[str, str]:
    from shardkit.schema.trees import catalog_head  # with all of Alembic

    return catalog_revision(catalog), catalog_head()


def _cache_warnings(settings: Settings) -> tuple[str, ...]:
    if settings.redis_url is None:
        return ()
    from shardkit._sync.kit import ShardKit  # with all of SQLAlchemy, which nothing else here needs

    with ShardKit(settings=settings) as kit:
        return tuple(kit.cache.servers()["warnings"])


@dataclass(frozen=True, slots=True)
class Fix:
    """Something ``fix`` will do, in words."""

    where: str
    what: str


def plan_fixes(diagnosis: Diagnosis) -> tuple[Fix, ...]:
    """What can be mended without a choice: transactions in doubt by their record, and what of shardkit's own is missing."""
    return tuple(_fixes(diagnosis))


def _fixes(diagnosis: Diagnosis) -> Iterator[Fix]:
    checked, facts = set(diagnosis.checks), diagnosis.facts
    if "catalog" in checked and _outdated(facts):
        there, newest = facts.catalog_revision
        yield Fix("catalog", f"bring its tables from revision {there or 'none'} to {newest}")
    for name, found in facts.answered().items():
        if checked & {"furniture", "roles"} and _bare(found):
            yield Fix(name, "make the roles and functions of shardkit that are missing")
        if "prepared" in checked:
            for part in found.prepared:
                if part.ours and (part.overdue or part.outcome):
                    yield Fix(name, f"{part.outcome or 'abort'} the prepared transaction {part.gid} ({part.age_s:.0f} s old)")


def fix(settings: Settings, diagnosis: Diagnosis) -> int:
    """Do what ``plan_fixes`` says; gives how many transactions' parts were ended. Raises ServerError."""
    checked, facts = set(diagnosis.checks), diagnosis.facts
    if "catalog" in checked and _outdated(facts):
        from shardkit.schema.trees import upgrade_catalog

        upgrade_catalog(settings)
    for name, found in facts.answered().items():
        if checked & {"furniture", "roles"} and _bare(found):
            server = facts.map.server(name)
            with at(server_url(server, settings), settings, name=f"server {name!r}") as connection:
                prepare_server(connection, cluster_id=facts.map.cluster_id, server_id=server.server_id)
    return len(resolve(settings, facts.map)) if "prepared" in checked else 0


def _outdated(facts: Facts) -> bool:
    there, newest = facts.catalog_revision
    return there < newest


def _bare(found: ServerFacts) -> bool:
    return bool(found.functions_missing) or {role.name for role in found.roles} != {APP_ROLE, OPERATOR_ROLE}
