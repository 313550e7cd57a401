"""Counts how long things took in buckets that any number of counters can add up: a percentile of all is read off the sum.

A mean of percentiles is nobody's percentile; a sum of counts by bucket is the count of all. Four buckets to each doubling, so
what is read off is at most 19 % too high, and never too low.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

A_DOUBLING: Final = 4
SHORTEST_S: Final = 1e-5
LIMITS_S: Final = tuple(SHORTEST_S * 2 ** (step / A_DOUBLING) for step in range(128))
"""The longest time in each bucket: the first takes all up to 10 µs, the last one (10 hours) all that is longer."""


class Bucket(NamedTuple):
    """*times* of those a *shard* was asked, the answer took up to ``LIMITS_S[bucket]`` and longer than the limit before."""

    shard: int
    bucket: int
    times: int


class Latencies:
    """How long each shard took to answer. Not for two threads at once."""

    __slots__ = ("_counts",)

    def __init__(self, buckets: Iterable[Bucket] = ()) -> None:
        self._counts: Counter[tuple[int, int]] = Counter()
        for shard, bucket, times in buckets:
            if not 0 <= bucket < len(LIMITS_S) or times < 1:
                raise ValueError("a bucket is one of those there are, and what is counted happened once at least")
            self._counts[shard, bucket] += times

    def add(self, taken: Iterable[tuple[int, float]]) -> None:
        """Count each (shard, seconds)."""
        last = len(LIMITS_S) - 1
        self._counts.update((shard, bisect_left(LIMITS_S, seconds, hi=last)) for shard, seconds in taken)

    def merge(self, other: Latencies) -> None:
        """Count what *other* counted."""
        self._counts.update(other._counts)

    def buckets(self) -> list[Bucket]:
        """Everything counted; ``Latencies`` of it are the same ones."""
        return [Bucket(shard, bucket, times) for (shard, bucket), times in self._counts.items()]

    def p99_s(self) -> Mapping[int, float]:
        """By shard, the seconds within which 99 of 100 answers came; of fewer than 100 it is the slowest."""
        shards: dict[int, list[tuple[int, int]]] = {}
        for (shard, bucket), times in self._counts.items():
            shards.setdefault(shard, []).append((bucket, times))
        return {shard: _percentile(counts, percent=99) for shard, counts in shards.items()}


def _percentile(counts: Iterable[tuple[int, int]], *, percent: int) -> float:
    """The limit of the bucket that holds the one at this rank, counted from the fastest."""
    ordered = sorted(counts)
    missing = -(-sum(times for _, times in ordered) * percent // 100)
    for bucket, times in ordered:
        missing -= times
        if missing <= 0:
            return LIMITS_S[bucket]
    raise ValueError("nothing was counted")
