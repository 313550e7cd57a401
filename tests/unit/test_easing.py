"""When a move leaves its source alone: a standby is late by our own clock, or too many others are at work."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardkit.core.easing import Limits, SourceLoad


def test_without_limits_there_is_no_reason():
    assert not Limits().any
    assert SourceLoad(Limits()).reason(0.0, 100, {"far": 0}, 1000) is None


def test_a_standby_that_hangs_gets_later_though_it_reports_nothing():
    pulse = SourceLoad(Limits(lag_s=2.0))
    assert pulse.reason(0.0, 100, {"s1": 100}, 0) is None
    assert pulse.reason(10.0, 200, {"s1": 100}, 0) is None
    assert pulse.reason(11.0, 300, {"s1": 100}, 0) is None
    said = pulse.reason(12.5, 400, {"s1": 100}, 0)
    assert said is not None
    assert "s1 is 2.5 s behind (limit 2 s)" in said
    assert pulse.reason(13.0, 400, {"s1": 300}, 0) is None


def test_a_standby_of_an_idle_source_is_not_late():
    pulse = SourceLoad(Limits(lag_s=0.1))
    assert all(pulse.reason(float(now), 100, {"s1": 100}, 0) is None for now in range(0, 10_000, 100))


def test_a_standby_that_missed_the_last_word_of_a_quiet_hour_is_late():
    pulse = SourceLoad(Limits(lag_s=2.0))
    assert pulse.reason(0.0, 100, {"s1": 0}, 0) is None
    assert pulse.reason(3600.0, 200, {"s1": 0}, 0) is not None, "it has not even what was there an hour ago"


@pytest.mark.parametrize(("active", "paused"), [(3, False), (4, True)])
def test_others_at_work(active, paused):
    assert (SourceLoad(Limits(active=3)).reason(0.0, 1, {}, active) is not None) is paused


@given(
    st.lists(st.tuples(st.floats(0.01, 30), st.integers(0, 50), st.integers(0, 60)), min_size=1, max_size=40),
    st.floats(0.1, 20),
)
def test_late_means_that_something_older_is_missing(looks, limit_s):
    """Against the definition, with the whole history kept."""
    pulse, now, lsn, replayed, history = SourceLoad(Limits(lag_s=limit_s)), 0.0, 0, 0, []
    for pause_s, written, applied in looks:
        now, lsn = now + pause_s, lsn + written
        replayed = min(lsn, replayed + applied)
        if not history or history[-1][1] < lsn:
            history.append((now, lsn))
        missing = [at for at, end in history if end > replayed]
        late = bool(missing) and now - missing[0] > limit_s
        assert (pulse.reason(now, lsn, {"s": replayed}, 0) is not None) is late
