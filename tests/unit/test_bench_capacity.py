"""A server of fixed capacity never does more than that, whatever arrives when; and it counts what a client really asks."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.capacity import Pace, Statements

ARRIVALS = st.lists(st.tuples(st.floats(0, 5), st.integers(0, 4)), max_size=60).map(sorted)
SSL = struct.pack("!II", 8, 80877103)
STARTUP = struct.pack("!II", 8 + 9, 196608) + b"user\0app\0"


def message(kind: bytes, body: bytes = b"") -> bytes:
    return kind + struct.pack("!I", 4 + len(body)) + body


@given(ARRIVALS, st.sampled_from([1.0, 7.0, 100.0]), st.floats(0, 5), st.floats(0.1, 5))
def test_no_window_has_more_than_its_time_allows(arrivals: list[tuple[float, int]], per_s: float, begin: float, lasting: float):
    pace = Pace(per_s)
    dues = [pace.due(now, statements) for now, statements in arrivals]
    assert pace.passed(begin, begin + lasting) <= lasting * per_s + 1 + 1e-6
    assert pace.passed(0, float("inf")) == sum(statements for _, statements in arrivals)
    assert all(one <= other for one, other in pairwise(dues)), "who came first is served first"
    assert all(due >= now + statements / per_s - 1e-9 for due, (now, statements) in zip(dues, arrivals, strict=True))


def test_with_work_at_hand_it_serves_exactly_its_capacity_and_idle_time_is_lost():
    pace = Pace(10)
    for _ in range(100):
        pace.due(1.0, 1)
    assert [pace.passed(1.05, 2.05), pace.passed(2.05, 7.05)] == [10, 50]
    assert pace.due(20.0, 1) == pytest.approx(20.1)
    assert pace.due(20.0, 1) == pytest.approx(20.2), "the nine seconds before are not made up for"


@given(
    st.lists(st.tuples(st.sampled_from([b"Q", b"P", b"B", b"D", b"E", b"C", b"S", b"X"]), st.binary(max_size=40)), max_size=20),
    st.lists(st.integers(0, 900), max_size=8),
    st.booleans(),
)
def test_statements_are_counted_however_the_bytes_are_cut(messages: list[tuple[bytes, bytes]], cuts: list[int], ssl: bool):
    data = (SSL if ssl else b"") + STARTUP + b"".join(message(kind, body) for kind, body in messages)
    at = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    count = Statements()
    assert sum(count.feed(data[one:other]) for one, other in pairwise(at)) == sum(kind in (b"Q", b"E") for kind, _ in messages)
