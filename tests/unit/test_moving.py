"""Where sequences go on after a move: past what was given, and never at their end while there are values left."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shardkit.core.moving import goes_on_at

VALUES = st.integers(-(2**63), 2**63 - 1)


@given(st.lists(VALUES, min_size=3, max_size=3).map(sorted), st.integers(-1000, 1000).filter(bool), st.integers(0, 10**6))
def test_a_sequence_goes_on_past_its_last_value_with_some_left(values, increment, margin):
    lowest, last, highest = values
    on = goes_on_at(last, increment=increment, lowest=lowest, highest=highest, margin=margin)
    steps, rest = divmod(on - last, increment)
    assert rest == 0
    assert 0 <= steps <= margin
    assert (lowest <= on + increment <= highest) == (lowest <= last + increment <= highest)


def test_the_last_values_are_shared_out():
    of_smallint = {"increment": 1, "lowest": 1, "highest": 32767}
    assert goes_on_at(100, margin=100, **of_smallint) == 200
    assert goes_on_at(100, margin=1_000_000, **of_smallint) == 100 + 32667 // 2
    assert goes_on_at(32767, margin=100, **of_smallint) == 32767
    assert goes_on_at(900, increment=-2, lowest=-1000, highest=1000, margin=100) == 700
