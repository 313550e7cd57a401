"""The doctor's judgement, pure: from facts to findings, one function a check."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Final

from shardkit.core.health import leftovers, shards, standing
from shardkit.core.health.facts import Facts, Finding

CHECKS: Final[dict[str, Callable[[Facts], Iterator[Finding]]]] = {
    "servers": standing.servers,
    "settings": standing.settings,
    "durability": standing.durability,
    "standby": standing.standby,
    "clocks": standing.clocks,
    "locks": standing.locks,
    "memory": standing.memory,
    "connections": standing.connections,
    "pooler": standing.pooler,
    "roles": shards.roles,
    "row-security": shards.row_security,
    "schemas": shards.schemas,
    "copies": shards.copies,
    "rows": shards.rows,
    "furniture": shards.furniture,
    "slots": leftovers.slots,
    "streams": leftovers.streams,
    "prepared": leftovers.prepared,
    "outbox": leftovers.outbox,
    "moves": leftovers.moves,
    "programs": leftovers.programs,
    "catalog": leftovers.catalog,
    "redis": leftovers.redis,
}


def judge(facts: Facts, *, checks: Collection[str] = tuple(CHECKS)) -> tuple[Finding, ...]:
    """What *checks* find, problems first."""
    found = [finding for name, check in CHECKS.items() if name in checks for finding in check(facts)]
    return tuple(sorted(found, key=lambda finding: finding.severity != "problem"))
