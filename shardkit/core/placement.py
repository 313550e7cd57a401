"""Which shard belongs on which server: even by weight, and never moving a shard for nothing.

Three rules, in this order: a server's *quota* of shards follows its weight (largest remainder); a server *keeps what
it has* up to its quota; a shard that must go asks the *consistent hash ring* for its preference among those with room.
The ring alone leaves the fullest of 64 servers a third over its share; with quotas every server holds exactly its own.

Where loads are given, shards are weighed instead of counted (``levelling``): even counts are not even load.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Any

from hashring import HashRing

from shardkit.core.levelling import NOISE, fair_shares, level
from shardkit.errors import PlacementError


@dataclass(frozen=True, slots=True)
class PlannedMove:
    """One shard that should go from *source* to *target*; ``source`` is None for a shard that is nowhere yet.

    ``load`` is in the unit of the loads that were given, or 1.0 where shards were counted.
    """

    shard: int
    source: str | None
    target: str
    load: float


@dataclass(frozen=True, slots=True)
class Plan:
    """Where every shard should be, and the moves that lead there.

    ``before`` and ``after`` are the load (or the number of shards) of every server, leaving ones included.
    ``oversized`` are shards that no server can hold within its share: moving cannot help, isolate their tenants.
    """

    placement: Mapping[int, str]
    moves: tuple[PlannedMove, ...]
    before: Mapping[str, float]
    after: Mapping[str, float]
    oversized: tuple[int, ...] = ()

    @property
    def moved(self) -> float:
        """Load (or number of shards) that has to be carried from one server to another."""
        return math.fsum(move.load for move in self.moves if move.source is not None)


def quotas(servers: Mapping[str, float], total: int, *, held: Mapping[str, int] | None = None) -> dict[str, int]:
    """Number of shards for each of *servers* (name → weight) by largest remainder; the numbers sum to *total*.

    Of equal remainders the extra shard goes to the server that already *held* more than its whole part, which saves a
    move; then by name. Raises PlacementError for no servers, or a weight that is not a positive number.
    """
    weights = _checked(servers)
    held = held or {}
    unit = Fraction(total) / sum(weights.values(), Fraction())
    share = {name: weight * unit for name, weight in weights.items()}
    whole = {name: math.floor(part) for name, part in share.items()}

    def claim(name: str) -> tuple[Fraction, bool, str]:
        return whole[name] - share[name], held.get(name, 0) <= whole[name], name

    for name in sorted(share, key=claim)[: total - sum(whole.values())]:
        whole[name] += 1
    return whole


def place(shards: Iterable[int], servers: Mapping[str, float]) -> dict[int, str]:
    """First placement of *shards* on *servers* (name → weight): shard → server."""
    return dict(plan(dict.fromkeys(shards), servers).placement)


def plan(
    current: Mapping[int, str | None],
    servers: Mapping[str, float],
    *,
    loads: Mapping[int, float] | None = None,
    fixed: Collection[int] = frozenset(),
    tolerance: float = 0.02,
) -> Plan:
    """Best placement that can be reached from *current* (shard → server, or None) with the fewest moves.

    *servers* (name → weight) are those that may hold shards: one that drains or was removed is only in *current* and
    loses everything. Leave shards of a server that is down out of *current*, since nothing can be copied from it.
    Shards in *fixed* cannot move now and count where they are; each must be on one of *servers*.

    Without *loads* every server ends at its quota with the least possible number of moves. With *loads* (shard → bytes,
    or any other figure; a shard without one counts as the mean of the others) little is moved, until no server is more
    than *tolerance* above its share, as far as the shards allow. The same input gives the same plan, on any machine.
    Raises PlacementError for no servers, a weight that is not positive, a negative load or tolerance.
    """
    _checked(servers)
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise PlacementError(f"a tolerance of {tolerance!r} makes no sense: give a fraction such as 0.02")
    if loads is None:
        weighed = dict.fromkeys(current, 1.0)
        placement = _by_count(current, servers, fixed)
        oversized: tuple[int, ...] = ()
    else:
        weighed = _weighed(current, loads)
        placement = level(current, servers, loads=weighed, fixed=fixed, tolerance=tolerance)
        largest = (1 + tolerance) * max(fair_shares(servers, math.fsum(weighed.values())).values())
        oversized = tuple(sorted(shard for shard, load in weighed.items() if load > largest * (1 + NOISE)))
    moves = tuple(
        PlannedMove(shard, current[shard], placement[shard], weighed[shard])
        for shard in sorted(current)
        if current[shard] != placement[shard]
    )
    names = sorted({*servers, *(name for name in current.values() if name is not None)})
    before, after = _load_of(names, current, weighed), _load_of(names, placement, weighed)
    return Plan(MappingProxyType(placement), moves, before, after, oversized)


def _by_count(current: Mapping[int, str | None], servers: Mapping[str, float], fixed: Collection[int]) -> dict[int, str]:
    """Every server at its quota, with the least number of moves."""
    kept: dict[str, list[int]] = {name: [] for name in sorted(servers)}
    leaving: list[int] = []
    for shard in sorted(current):
        kept.get(current[shard] or "", leaving).append(shard)
    quota = quotas(servers, len(current), held={name: len(shards) for name, shards in kept.items()})
    # The names are sorted, because where two points collide the later name wins; and never `weights=`, which is wrong.
    ring: Any = HashRing(list(kept))
    for name, shards in kept.items():
        if len(shards) > quota[name]:
            # What the ring would put elsewhere goes first, so that placements drift towards the ring, not away from it.
            shards.sort(key=lambda shard: (shard not in fixed, ring.get_node(_ring_key(shard)) != name))
            keeps = max(quota[name], sum(shard in fixed for shard in shards))
            leaving += shards[keeps:]
            del shards[keeps:]
    for shard in sorted(leaving):
        kept[next(name for name in ring.iterate_nodes(_ring_key(shard)) if len(kept[name]) < quota[name])].append(shard)
    return {shard: name for name, shards in kept.items() for shard in shards}


def _ring_key(shard: int) -> str:
    return f"shard:{shard}"


def _checked(servers: Mapping[str, float]) -> dict[str, Fraction]:
    """The weights, exactly as they were written: 0.1 is a tenth."""
    if not servers:
        raise PlacementError("there is no active server to place shards on: add one with `shardkit server add`")
    for name, weight in servers.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not (0 < weight < math.inf):
            raise PlacementError(f"server {name!r} has the weight {weight!r}: it must be a positive number")
    return {name: Fraction(str(weight)) for name, weight in servers.items()}


def _weighed(shards: Iterable[int], loads: Mapping[int, float]) -> dict[int, float]:
    """A load for each of *shards*: the mean for those that have none, 1.0 for all if there is no load at all."""
    known = {shard: float(loads[shard]) for shard in shards if shard in loads}
    for shard, load in known.items():
        if not 0 <= load < math.inf:
            raise PlacementError(f"shard {shard} has the load {load!r}: it must be a number, not negative")
    total = math.fsum(known.values())
    mean = total / len(known) if total else 1.0
    return {shard: known.get(shard, mean) if total else mean for shard in shards}


def _load_of(servers: Iterable[str], placement: Mapping[int, str | None], loads: Mapping[int, float]) -> Mapping[str, float]:
    """Load of each of *servers* under *placement*."""
    held: dict[str, list[float]] = {name: [] for name in servers}
    for shard, name in placement.items():
        if name is not None:
            held[name].append(loads[shard])
    return MappingProxyType({name: math.fsum(parts) for name, parts in held.items()})
