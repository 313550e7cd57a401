"""Medians, quartiles and bootstrap intervals: the few figures that stay honest on a noisy machine."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

Better = Literal["lower", "higher"]
Rounds = Sequence[Sequence[float]]
"""Per round, the seconds of each single operation."""

RESAMPLES: Final = 2000
CONFIDENCE: Final = 0.95


def quantile(values: Sequence[float], share: float) -> float:
    """The *share* quantile (0 to 1) of *values*, linear between neighbours."""
    if not values:
        raise ValueError("no values, no quantile")
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    # Not low*(1-f) + high*f: that form can leave the interval of its two neighbours by a rounding error.
    between = ordered[low] + (ordered[high] - ordered[low]) * (place - low)
    return min(max(between, ordered[low]), ordered[high])


def median(values: Sequence[float]) -> float:
    return quantile(values, 0.5)


class Interval(NamedTuple):
    low: float
    high: float


def bootstrap(values: Sequence[float], *, resamples: int = RESAMPLES, seed: int = 1) -> Interval:
    """Interval of the median of *values* at :data:`CONFIDENCE`, by resampling with replacement.

    The seed is fixed, so that the same samples always give the same report.
    """
    draw = random.Random(seed)
    medians = [median(draw.choices(values, k=len(values))) for _ in range(resamples)]
    tail = (1 - CONFIDENCE) / 2
    return Interval(quantile(medians, tail), quantile(medians, 1 - tail))


def ratios(ours: Rounds, other: Rounds, *, better: Better = "lower", paired: bool = True) -> list[float]:
    """One ratio per round, of the medians of the two sides' operations.

    *better* "lower": ours / other, as in "takes 0.9 of the time". "higher": other / ours, as in "is 5 times faster".
    *paired*: the n-th rounds of the two sides ran next to each other and share their noise. Otherwise each round of
    ours is held against the median of all rounds of the other.
    """
    mine, theirs = [median(block) for block in ours], [median(block) for block in other]
    if paired and len(mine) != len(theirs):
        raise ValueError(f"paired sides need the same number of rounds, not {len(mine)} and {len(theirs)}")
    if not paired:
        theirs = [median(theirs)] * len(mine)
    pairs = zip(mine, theirs, strict=True)
    return [b / a if better == "higher" else a / b for a, b in pairs]
