"""A replica that satisfies a requirement shows everything that was committed before the moments it is about."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shardkit.core.lag import Anchor, Position, lsn_number, lsn_text, requirement

NOW = 1000.0


def history(steps):
    """Anchors as a watch would make them: time and log only go forward; commits lie at any time in between."""
    at_s, lsn, anchors = NOW - 100.0, 1, []
    for wait_s, bytes_ in steps:
        at_s, lsn = at_s + wait_s, lsn + bytes_
        anchors.append(Anchor(at_s, 1, lsn))
    return anchors


def lsn_of(anchors, moment):
    """The least position that surely holds what was committed by *moment*, by the anchors alone; None: not known."""
    return next((a.lsn for a in anchors if a.at_s >= moment), None)


STEPS = st.lists(st.tuples(st.floats(0.001, 2.0), st.integers(0, 1000)), max_size=40)


@given(steps=STEPS, max_lag_s=st.floats(0.01, 50.0), written=st.none() | st.floats(NOW - 90.0, NOW))
def test_what_is_required_covers_the_bound_and_the_own_writes(steps, max_lag_s, written):
    anchors = [a for a in history(steps) if a.at_s <= NOW]
    found = requirement(anchors, now_s=NOW, max_lag_s=max_lag_s, written_s=written, after=None)
    bound = lsn_of(anchors, NOW - max_lag_s)
    if bound is None:
        assert found is None
    elif written is not None and not any(a.at_s > written for a in anchors):
        assert found is None  # nothing was asked since: only the primary knows
    else:
        assert found.floor == bound
        assert found.lsn >= bound
        assert written is None or found.lsn >= next(a.lsn for a in anchors if a.at_s > written)


def test_an_idle_primary_makes_no_lag():
    anchors = [Anchor(NOW - s, 1, 500) for s in (3.0, 2.0, 1.0, 0.1)]
    assert requirement(anchors, now_s=NOW, max_lag_s=0.5, written_s=None, after=None).floor == 500


def test_old_knowledge_is_none():
    assert requirement([Anchor(NOW - 2.0, 1, 500)], now_s=NOW, max_lag_s=1.0, written_s=None, after=None) is None
    assert requirement([], now_s=NOW, max_lag_s=1.0, written_s=None, after=None) is None


def test_positions_of_different_timelines_are_not_compared():
    anchors = [Anchor(NOW - 0.2, 2, 500)]
    assert requirement(anchors, now_s=NOW, max_lag_s=1.0, written_s=None, after=Position(1, 400)) is None
    assert requirement(anchors, now_s=NOW, max_lag_s=1.0, written_s=None, after=Position(2, 900)).lsn == 900
    promoted = [Anchor(NOW - 0.4, 1, 700), Anchor(NOW - 0.2, 2, 500)]
    assert requirement(promoted, now_s=NOW, max_lag_s=1.0, written_s=None, after=None) is None


@given(lsn=st.integers(0, 2**64 - 1))
def test_an_lsn_survives_its_text(lsn):
    assert lsn_number(lsn_text(lsn)) == lsn
