"""Counts the most frequent of any number of keys in bounded memory, and says by how much a count can be off.

Misra and Gries' summary, pruned in batches: where there are twice as many keys as places, the count of the first one without a
place is taken off all of them. So an update is one look-up, and no count is off by more than 1/(places + 1) of the total.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Generic, NamedTuple, TypeVar

K = TypeVar("K", bound=Hashable)


class Frequent(NamedTuple, Generic[K]):
    """A *key* that was counted between ``times - error`` and ``times`` times."""

    key: K
    times: int
    error: int


class Sketch(Generic[K]):
    """The keys counted most, *places* of them at least. Not for two threads at once."""

    __slots__ = ("_counts", "_places", "offset", "total")

    def __init__(self, places: int) -> None:
        if places < 1:
            raise ValueError("a sketch has one place at least")
        self._places = places
        self._counts: dict[K, int] = {}
        self.total = 0
        """How often anything was counted, exactly."""
        self.offset = 0
        """The most that any count can be too low by."""

    def add(self, counts: Mapping[K, int]) -> None:
        """Count each key as often as it says."""
        for key, count in counts.items():
            if count <= 0:
                raise ValueError("what is counted happened once at least")
            self.total += count
            self._counts[key] = self._counts.get(key, 0) + count
            if len(self._counts) >= 2 * self._places:
                self._prune()

    def top(self, most: int) -> list[Frequent[K]]:
        """Up to *most* keys, the most frequent first. Every key counted more than ``offset`` times has a place."""
        found = sorted(self._counts.items(), key=lambda item: -item[1])[:most]
        return [Frequent(key, count + self.offset, self.offset) for key, count in found]

    def __len__(self) -> int:
        return len(self._counts)

    def _prune(self) -> None:
        off = sorted(self._counts.values(), reverse=True)[self._places]
        self.offset += off
        self._counts = {key: count - off for key, count in self._counts.items() if count > off}
