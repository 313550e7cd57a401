"""What a cluster looks like at one moment, for whoever watches: servers, shards, moves, migrations. Values, and their JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

IDLE_S: Final = 30.0
"""A move about which nothing was written for so long, and that nobody holds, has stopped."""


@dataclass(frozen=True, slots=True)
class ShardPulse:
    """One shard: bytes of its relations; reads (scans) and writes (rows) since the server's counters began."""

    shard: int
    epoch: int
    size_bytes: int
    reads: int
    writes: int
    units_per_s: float | None = None
    """Units of work of programs, over the last minute, as far as they have told the catalog."""
    reads_per_s: float | None = None
    writes_per_s: float | None = None
    p99_ms: float | None = None
    """Within which 99 of 100 statements of programs were answered, over the last minute; at most 19 % too high."""


@dataclass(frozen=True, slots=True)
class StandbyPulse:
    """One streaming standby, as its primary sees it. ``sync``: sync, quorum, potential or async."""

    name: str
    state: str
    sync: str
    lag_bytes: int
    lag_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerPulse:
    """One server. ``problem``: why nothing is known of it now; the rest is then from before, or None."""

    name: str
    state: str
    weight: float
    placed: int
    """Shards that the map places there."""
    problem: str | None = None
    release: str | None = None
    size_bytes: int | None = None
    connections: int | None = None
    max_connections: int | None = None
    prepared: int = 0
    retained_bytes: int = 0
    shards: tuple[ShardPulse, ...] = ()
    standbys: tuple[StandbyPulse, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MovePulse:
    """One move. ``done`` of ``total`` are bytes while it copies and rows while it verifies; ``forecast_s`` is for that step."""

    id: int
    shard: int
    source: str
    target: str
    step: str
    ended: bool
    held: bool
    idle_s: float
    age_s: float
    problem: str | None = None
    tenant: bool = False
    """Whether it isolates a tenant, whose name is not said."""
    done: int = 0
    total: int = 0
    lag_ms: float | None = None
    note: str = ""
    forecast_s: float | None = None
    stall_ms: float | None = None

    @property
    def stuck(self) -> bool:
        """Whether it has a problem, or nobody works on it though it neither soaks nor has ended."""
        return not self.ended and (self.problem is not None or (not self.held and self.step != "soak" and self.idle_s > IDLE_S))


@dataclass(frozen=True, slots=True)
class MigrationPulse:
    """The newest run of migrations, and how many shards are not where it wanted them."""

    run: int
    target: str
    state: str
    shards_done: int | None
    unfinished: int


@dataclass(frozen=True, slots=True)
class HotTenant:
    """A tenant that programs do much work for: units of work per second, over the last minute."""

    tenant: str
    shard: int
    units_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulse:
    """A cluster at one moment (seconds since 1970)."""

    at_s: float
    cluster: str
    version: int
    shard_count: int
    servers: tuple[ServerPulse, ...]
    moves: tuple[MovePulse, ...] = ()
    migration: MigrationPulse | None = None
    cache: Mapping[str, Any] = field(default_factory=dict)
    """Hits and misses of Redis itself, over all programs: ``hits``, ``misses``, ``hit_rate``; empty where there is none."""
    hot: tuple[HotTenant, ...] = ()
    """Tenants with the most work, as far as programs have told the catalog."""

    def steps(self) -> dict[str, int]:
        """How many moves stand at each step, of those that have not ended."""
        return dict(Counter(move.step for move in self.moves if not move.ended))

    def as_json(self) -> dict[str, Any]:
        """For a page or a program: plain values by name."""
        found = asdict(self)
        for move, value in zip(self.moves, found["moves"], strict=True):
            value["stuck"] = move.stuck
        return found


def with_rates(now: Pulse, before: Pulse | None) -> Pulse:
    """*now*, with what each shard did per second since *before*; a counter that was set back gives none."""
    if before is None or now.at_s <= before.at_s:
        return now
    seconds = now.at_s - before.at_s
    known = {(server.name, shard.shard): shard for server in before.servers for shard in server.shards}

    def rated(server: str, shard: ShardPulse) -> ShardPulse:
        old = known.get((server, shard.shard))
        if old is None or old.epoch != shard.epoch or shard.reads < old.reads or shard.writes < old.writes:
            return shard
        return replace(
            shard, reads_per_s=(shard.reads - old.reads) / seconds, writes_per_s=(shard.writes - old.writes) / seconds
        )

    servers = tuple(replace(s, shards=tuple(rated(s.name, shard) for shard in s.shards)) for s in now.servers)
    return replace(now, servers=servers, cache=_cache_rates(now.cache, before.cache))


def _cache_rates(now: Mapping[str, Any], before: Mapping[str, Any]) -> Mapping[str, Any]:
    if not now or not before:
        return now
    hits, misses = now["hits"] - before["hits"], now["misses"] - before["misses"]
    return {**now, "hit_rate": hits / (hits + misses)} if hits >= 0 and misses >= 0 and hits + misses else now


def forecast_s(done: int, total: int, *, since_s: float) -> float | None:
    """Seconds that the rest takes at the pace so far; None where nothing can be said yet."""
    return (total - done) * since_s / done if 0 < done <= total and since_s > 0 else None
