"""What an operator may say about a move, and what a move says while it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from shardkit.core.easing import Limits
from shardkit.core.hashing import TenantKey
from shardkit.core.moving import FencePolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveOptions:
    """``budget_ms``: the longest that writers are held off at a time. ``soak``: keep the old place as a follower, for a
    rollback.
    """

    budget_ms: int = 250
    kill_blockers_after_s: float | None = None
    """End transactions that keep the fence waiting once they are open for so long; None: wait for them."""
    give_up_after_s: float = 600.0
    """How long the fence is tried for before the move stops (it can be resumed)."""
    slot_timeout_s: float = 60.0
    """How long open write transactions may keep a slot from being made."""
    wal_limit: int = 16 << 30
    """Bytes of WAL the move may hold back on the source before it is aborted."""
    soak: bool = True
    lag_ms: float = 50.0
    """How quickly a mark has to arrive before the fence is tried."""
    limits: Limits = field(default_factory=Limits)
    """The copy and the comparison pause while the source's standbys are further behind, or more sessions are at work there."""
    forget: Callable[[TenantKey, int], object] | None = None
    """Drops from the cache what is stored of a tenant under a shard. Needed where there is one and a tenant changes shards."""
    throttle: Callable[[Progress], float] | None = None
    """Asked after every block that is copied: seconds to pause, for whatever else is to be spared."""

    @property
    def policy(self) -> FencePolicy:
        """The fence's tries."""
        return FencePolicy(budget_ms=self.budget_ms)


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a move is: the journal's step, bytes or rows of it done, and how far the target is behind, in milliseconds."""

    move_id: int
    step: str
    done: int = 0
    total: int = 0
    lag_ms: float | None = None
    note: str = ""


Report = Callable[[Progress], None]


def silent(_: Progress) -> None:
    """No report."""
