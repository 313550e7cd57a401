"""What one process counts of its own work, and what it says of itself: plain values, for metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(slots=True)
class Tally:
    """Counters of one kit; plain ints, read as they are."""

    fences: int = 0
    """Units of work that met a closed shard and were led on, or told so."""
    retries: int = 0
    """Units of work that ``kit.run`` did again, because they had not taken effect."""
    unknown: int = 0
    """COMMITs whose answer was lost, of those that ``kit.run`` sent."""


@dataclass(frozen=True, slots=True)
class PoolStats:
    """Connections of one pool: its limit, those in use, those idle, and callers that wait for one."""

    size: int
    in_use: int
    idle: int
    waiting: int


@dataclass(frozen=True, slots=True)
class KitStats:
    """One kit now. ``pools`` by server (``pg1``, ``pg1 (replica 1)``); ``cache``: its counters, by name."""

    map_version: int
    fences: int
    retries: int
    unknown_commits: int
    pools: Mapping[str, PoolStats] = field(default_factory=dict)
    cache: Mapping[str, int] = field(default_factory=dict)
