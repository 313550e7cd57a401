"""Whether a move has to leave its source alone for a while: its standbys are behind, or it has too much else to do."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

LONGEST_S: Final = 600.0
"""How far behind a standby is, is known up to here; one that is further behind is so at least."""


@dataclass(frozen=True, slots=True)
class Limits:
    """``lag_s``: how far a standby of the source may be behind. ``active``: how many other sessions may be at work there."""

    lag_s: float | None = None
    active: int | None = None

    @property
    def any(self) -> bool:
        """Whether there is something to look at."""
        return self.lag_s is not None or self.active is not None


@dataclass(slots=True)
class SourceLoad:
    """Remembers when the source's log was how long; ``reason`` says why to pause, if there is a reason.

    How far behind a standby is follows from our own clock: since when the source has had what the standby has not. A standby
    that hangs gets later with every look, though it reports nothing; one of an idle source is not late.
    """

    limits: Limits
    _written: deque[tuple[float, int]] = field(default_factory=deque)

    def reason(self, now_s: float, lsn: int, standbys: Mapping[str, int], active: int) -> str | None:
        """*lsn* is the end of the source's log in bytes, *standbys* what each has replayed, *active* who else is at work."""
        if not self._written or self._written[-1][1] < lsn:
            self._written.append((now_s, lsn))
        while len(self._written) > 1 and self._written[1][0] < now_s - LONGEST_S:  # one that old stays, for who has not even it
            self._written.popleft()
        if self.limits.lag_s is not None:
            for name, replayed in standbys.items():
                lag_s = self.lag_s(now_s, replayed)
                if lag_s > self.limits.lag_s:
                    return f"standby {name} is {lag_s:.1f} s behind (limit {self.limits.lag_s:g} s)"
        if self.limits.active is not None and active > self.limits.active:
            return f"{active} other sessions are at work on the source (limit {self.limits.active})"
        return None

    def lag_s(self, now_s: float, replayed: int) -> float:
        """For how long the source has had something that is behind *replayed*."""
        return next((now_s - at_s for at_s, lsn in self._written if lsn > replayed), 0.0)
