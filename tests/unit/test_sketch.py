"""The laws of the sketch: its total is exact, its bounds hold, no frequent key is missing, and it stays small."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardkit.core.sketch import Sketch

STREAMS = st.lists(st.dictionaries(st.integers(0, 40), st.integers(1, 50), max_size=8), max_size=60)


@given(st.integers(1, 12), STREAMS)
def test_bounds_hold_for_every_stream(places, stream):
    sketch, true = Sketch(places), Counter()
    for counts in stream:
        sketch.add(counts)
        true.update(counts)
    assert sketch.total == true.total()
    assert len(sketch) < 2 * places
    assert sketch.offset * (places + 1) <= sketch.total
    top = sketch.top(1000)
    assert [found.times for found in top] == sorted((found.times for found in top), reverse=True)
    for key, count, error in top:
        assert count - error <= true[key] <= count
    kept = {found.key for found in top}
    assert all(key in kept for key, count in true.items() if count > sketch.offset)


@given(st.dictionaries(st.text(max_size=3), st.integers(1, 1000), max_size=12))
def test_few_keys_are_counted_exactly(counts):
    sketch = Sketch(12)
    sketch.add(counts)
    assert {found.key: (found.times, found.error) for found in sketch.top(100)} == {k: (n, 0) for k, n in counts.items()}


def test_a_hot_key_is_found_among_any_number_of_others():
    sketch = Sketch(10)
    for n in range(10_000):
        sketch.add({f"cold{n}": 1, "hot": 1})
    (hot,) = sketch.top(1)
    assert hot.key == "hot"
    assert hot.times - hot.error <= 10_000 <= hot.times
    assert hot.error <= 20_000 / 11


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="one place"):
        Sketch(0)
    with pytest.raises(ValueError, match="at least"):
        Sketch(1).add({"a": 0})
