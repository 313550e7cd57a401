"""What one kit's cache has done since the program began: numbers to be read by people and by exporters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields


@dataclass(slots=True)
class CacheStats:
    """Counters, of keys where nothing else is said; ``kit.cache.stats()`` gives a copy, made without asking anybody."""

    hits: int = 0
    misses: int = 0
    bypasses: int = 0
    """Calls that PostgreSQL answered because of their session: writes of its own, locks, an isolation above READ COMMITTED."""
    loads: int = 0
    """Statements sent to PostgreSQL because of misses."""
    fills: int = 0
    """Loads that were put into Redis."""
    unsettled: int = 0
    """Loads that were not, because a marked transaction was still open."""
    lost: int = 0
    """Leases that a writer, or somebody faster, took away."""
    waits: int = 0
    """Callers that waited for another one of this process."""
    busy: int = 0
    """Callers that did not wait longer for another process."""
    marks: int = 0
    """Keys that writers marked before COMMIT."""
    corrupt: int = 0
    """Stored values that were not ours, or of another schema."""
    down: int = 0
    """Calls that Redis did not answer."""
    outbox: int = 0
    """Transactions whose markers were left to the outbox."""
    breaker_open: bool = False
    """Whether Redis is not asked at present."""
    on_read: Callable[[int, int], None] | None = field(default=None, repr=False, compare=False)
    """Hears of every read, if somebody traces: how many values were there, how many were not."""

    def hit(self, count: int = 1) -> None:
        """*count* values were there."""
        self.hits += count
        if self.on_read is not None and count:
            self.on_read(count, 0)

    def miss(self, count: int = 1) -> None:
        """*count* values were not."""
        self.misses += count
        if self.on_read is not None:
            self.on_read(0, count)

    def values(self) -> dict[str, int]:
        """The counters by name."""
        return {one.name: int(getattr(self, one.name)) for one in fields(self) if one.name != "on_read"}
