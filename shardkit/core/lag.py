"""How far behind a replica may be, judged by one clock: what the primary had at a moment, the replica must have by now.

An anchor is a position of the primary's log, read after a moment of *our* clock. A replica that has replayed an anchor shows
everything that was committed before that moment. No clock of a server takes part, and an idle primary makes no false lag.
Positions of different timelines are never compared: after a promotion an old branch can be longer than the living one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


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
    """What a replica must have replayed: ``floor`` already when it is chosen, ``lsn`` before it answers (it may be waited for)."""

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
    if not anchors:
        return None
    timeline = anchors[-1].timeline
    if after is not None and after.timeline != timeline:
        return None
    usable = [a for a in anchors if a.at_s >= now_s - max_lag_s and a.timeline == timeline]
    if not usable:
        return None
    floor = lsn = usable[0].lsn
    if written_s is not None:
        since = next((a for a in usable if a.at_s > written_s), None)
        if since is None:
            return None
        lsn = max(lsn, since.lsn)
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
