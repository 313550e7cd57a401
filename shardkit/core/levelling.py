"""Carries load from servers above their share to servers below it, moving as little as possible.

Each shard moves at most once, and only to where the fuller of the two servers ends less full than it was. So the
fullest server never gets fuller, and it ends after at most as many steps as there are shards.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import NamedTuple

NOISE = 1e-9  # relative: what sums of floats may be off


class _Step(NamedTuple):
    load: float
    shard: int
    target: _Pile


@dataclass(slots=True, eq=False)
class _Pile:
    """What one server holds while the plan is made; ``movable`` are (load, shard), lightest first."""

    name: str
    weight: float
    share: float
    load: float = 0.0
    full: float = 0.0
    """Load over share; kept, because every step of a plan looks at every server's."""
    count: int = 0
    movable: list[tuple[float, int]] = field(default_factory=list)

    def full_with(self, more: float) -> float:
        """Load over share, with *more* added."""
        return (self.load + more) / self.share

    def add(self, load: float, count: int = 1) -> None:
        self.load += load
        self.full = self.load / self.share
        self.count += count

    def give(self, step: _Step) -> None:
        self.movable.remove((step.load, step.shard))
        self.add(-step.load, -1)
        step.target.add(step.load)


def fair_shares(servers: Mapping[str, float], total: float) -> dict[str, float]:
    """Each server's part of *total*, by weight."""
    weight = math.fsum(servers.values())
    return {name: total * (own / weight) for name, own in servers.items()}


def level(
    current: Mapping[int, str | None],
    servers: Mapping[str, float],
    *,
    loads: Mapping[int, float],
    fixed: Collection[int] = frozenset(),
    tolerance: float,
) -> dict[int, str]:
    """Placement with no server more than *tolerance* above its share of *loads*, as far as the shards allow.

    *loads* must have every shard of *current*, and a sum above zero. Those in *fixed* stay where they are.
    """
    if not current:
        return {}
    shares = fair_shares(servers, math.fsum(loads[shard] for shard in current))
    piles = {name: _Pile(name, servers[name], shares[name]) for name in sorted(servers)}
    placement: dict[int, str] = {}
    homeless: list[tuple[float, int]] = []
    for shard in sorted(current):
        pile = piles.get(current[shard] or "")
        if pile is None:
            homeless.append((-loads[shard], shard))
        else:
            placement[shard] = pile.name
            pile.add(loads[shard])
            if loads[shard] > 0 and shard not in fixed:
                pile.movable.append((loads[shard], shard))
    for negative, shard in sorted(homeless):  # heaviest first: the light ones then fill what is left uneven
        target = _emptiest(piles.values(), -negative)
        target.add(-negative)
        placement[shard] = target.name
    for pile in piles.values():
        pile.movable.sort()

    limit, gain = (1 + tolerance) * (1 + NOISE), max(tolerance, NOISE)
    stuck: dict[str, _Pile] = {}
    while over := [pile for pile in piles.values() if pile.full > limit and pile.name not in stuck]:
        fullest = max(over, key=attrgetter("full"))
        step = _fitting(fullest, piles.values(), limit) or _easing(fullest, piles.values(), gain)
        if step is None:
            stuck[fullest.name] = fullest
        else:
            fullest.give(step)
            placement[step.shard] = step.target.name
            # The giver alone has more room than before, so it alone can free one that found none anywhere.
            stuck = {
                name: pile
                for name, pile in stuck.items()
                if pile is not step.target and not _fitting(pile, [fullest], limit) and not _easing(pile, [fullest], gain)
            }
    return placement


def _emptiest(piles: Iterable[_Pile], more: float) -> _Pile:
    """The server that is least full once it holds *more*; of equals the one with fewer shards, then by name."""
    return min(piles, key=lambda pile: (pile.full_with(more), pile.count / pile.weight, pile.name))


def _fitting(source: _Pile, piles: Collection[_Pile], limit: float) -> _Step | None:
    """The step that fits on another server within *limit* and brings *source* there with the least load moved.

    *source*, which is above the limit, may be among *piles*: nothing fits on it.
    """
    excess = source.load - limit * source.share
    room = max(limit * pile.share - pile.load for pile in piles)
    fits = source.movable[: bisect_right(source.movable, (room, math.inf))]
    if not fits:
        return None
    above = bisect_left(fits, (excess, -1))
    if above == len(fits):
        load, shard = fits[-1]
    else:
        load, shard = fits[above]  # ends it alone, unless a lighter one and one more together are lighter still
        if above:
            below = fits[above - 1]
            if below[0] + fits[bisect_left(fits, (excess - below[0], -1))][0] < load:
                load, shard = below
    return _Step(load, shard, _emptiest(piles, load))


def _easing(source: _Pile, piles: Iterable[_Pile], gain: float) -> _Step | None:
    """The step that leaves the fuller of both servers least full, if that is at least *gain* better than now."""
    best: tuple[tuple[float, float], _Step] | None = None
    most = source.full - gain
    for pile in piles:
        shares = source.share + pile.share
        if (source.load + pile.load) / shares * (1 - NOISE) > most:
            continue  # not even halves of a shard would leave the two that even; nearly all servers end here
        even = (source.load * pile.share - pile.load * source.share) / shares
        at = bisect_left(source.movable, (even, -1))
        for load, shard in source.movable[max(at - 1, 0) : at + 1]:
            here, there = source.full_with(-load), pile.full_with(load)
            rank = max(here, there), there
            if rank[0] <= most and (best is None or rank < best[0]):
                best, most = (rank, _Step(load, shard, pile)), rank[0]
    return best and best[1]
