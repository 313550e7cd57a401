"""How far behind a replica may be, judged by one clock: what the primary had at a moment, the replica must have by now.

An anchor is a position of the primary's log, read after a moment of *our* clock. A replica that has replayed an anchor shows
everything that was committed before that moment. No clock of a server takes part, and an idle primary makes no false lag.
Positions of different timelines are never compared: after a promotion an old branch can be longer than the living one.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from operator import attrgetter
from typing import Final, NamedTuple

_AT: Final = attrgetter("at_s")


class Anchor(NamedTuple):
    """``lsn`` of the primary was read after ``at_s`` (monotonic clock of this process)."""

    at_s: float
    timeline: int
    lsn: int


class Position(NamedTuple):
    """A point in a server's log; ``lsn`` in bytes."""

    timeline: int
    lsn: int


class Requirement(NamedTuple):
    """What a replica must have replayed: ``floor`` when it is chosen, ``lsn`` when it answers (which may be waited for)."""

    timeline: int
    floor: int
    lsn: int


def requirement(
    anchors: Sequence[Anchor], *, now_s: float, max_lag_s: float, written_s: float | None, after: Position | None
) -> Requirement | None:
    """What a read at *now_s* asks of a replica; None: only the primary can serve it.

    *anchors* are in the order of their time. *written_s* is when this process last committed for the tenant; *after* is a
    position that a token names.
    """
    oldest = bisect_left(anchors, now_s - max_lag_s, key=_AT)
    if oldest == len(anchors):
        return None
    timeline, floor = anchors[-1].timeline, anchors[oldest].lsn
    if anchors[oldest].timeline != timeline or (after is not None and after.timeline != timeline):
        return None
    lsn = floor
    if written_s is not None:
        since = bisect_right(anchors, written_s, key=_AT)
        if since == len(anchors):
            return None
        lsn = max(lsn, anchors[since].lsn)
    if after is not None:
        lsn = max(lsn, after.lsn)
    return Requirement(timeline, floor, lsn)


def lsn_text(lsn: int) -> str:
    """An LSN as PostgreSQL writes it: ``16/B374D848``."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def lsn_number(text: str) -> int:
    """The number of an LSN as PostgreSQL writes it."""
    high, _, low = text.partition("/")
    return int(high, 16) << 32 | int(low, 16)
