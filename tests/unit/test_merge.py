"""Merging keeps order, loses nothing, waits for nobody, and computes as PostgreSQL does."""

from __future__ import annotations

import random
from decimal import Decimal
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardkit.core.chunks import CHUNK, chunks_of
from shardkit.core.merge import (
    DISTINCT,
    Merge,
    OrderKey,
    average,
    combine,
    comparable,
    distinct,
    distinct_values,
    groups,
    numeric_quotient,
    sort_key,
)
from shardkit.core.shardmap import Route
from shardkit.errors import FanOutError, FanOutRefusedError

VALUES = st.one_of(st.none(), st.integers(-3, 3))
ROWS = st.tuples(VALUES, VALUES)
ORDERS = st.lists(st.builds(OrderKey, st.sampled_from([0, 1]), st.booleans(), st.booleans()), min_size=1, max_size=2)


@given(st.lists(st.lists(ROWS, max_size=8), min_size=1, max_size=5), ORDERS, st.integers(0, 1000))
def test_streams_fed_in_any_pieces_come_out_sorted_and_whole(streams, orders, seed) -> None:
    draw = random.Random(seed)
    key = sort_key(orders, [None] * len(orders))
    streams = [sorted(stream, key=key) for stream in streams]
    merge, at, found = Merge(len(streams), key), [0] * len(streams), []
    while merge.hungry:
        stream = draw.choice(sorted(merge.hungry))
        size = draw.randrange(4)
        piece = streams[stream][at[stream] : at[stream] + size]
        at[stream] += len(piece)
        merge.feed(stream, piece, more=at[stream] < len(streams[stream]) or draw.random() < 0.3)
        found += merge.take()
    assert sorted(map(repr, found)) == sorted(repr(row) for stream in streams for row in stream)
    assert all(not key(after) < key(before) for before, after in pairwise(found))


def test_nothing_is_given_out_while_a_stream_could_still_have_less() -> None:
    merge = Merge(2, sort_key([OrderKey(0)], [None]))
    merge.feed(0, [(1,), (2,)], more=True)
    assert (list(merge.take()), merge.hungry) == ([], {1})
    merge.feed(1, [(0,)], more=True)
    assert (list(merge.take()), merge.hungry) == ([(0,)], {1})
    merge.feed(1, [], more=False)
    assert (list(merge.take()), merge.hungry) == ([(1,), (2,)], {0})


def test_a_stream_in_another_order_is_an_error() -> None:
    merge = Merge(1, sort_key([OrderKey(0)], [None]))
    merge.feed(0, [("b",), ("a",)], more=False)
    with pytest.raises(FanOutError, match="another order"):
        list(merge.take())


def test_what_python_orders_otherwise_is_refused() -> None:
    assert comparable(25, code_points=True, what="x") is None
    with pytest.raises(FanOutRefusedError, match="code points"):
        comparable(25, code_points=False, what="x")
    with pytest.raises(FanOutRefusedError, match="oid 1186"):
        comparable(1186, code_points=True, what="x")


def test_nan_is_equal_to_itself_and_greater_than_all() -> None:
    nan = float("nan")
    number = comparable(701, code_points=True, what="x")
    assert number is not None
    assert sorted([nan, 1.0, float("inf")], key=number) == [1.0, float("inf"), pytest.approx(nan, nan_ok=True)]
    assert len(list(distinct([(nan,), (float("nan"),)], lambda row: tuple(map(number, row))))) == 1
    assert combine("max", 1.0, nan) != combine("max", 1.0, nan)
    assert combine("min", nan, 1.0) == 1.0


def test_partial_groups_become_whole_ones() -> None:
    parts = [("a", 1, None, 3), ("b", 2, 5, 1), ("a", 4, 7, 1), ("a", 1, 2, None)]
    assert sorted(groups(parts, 1, ["count", "sum", "min"], lambda row: row)) == [("a", 6, 9, 1), ("b", 2, 5, 1)]


def test_sums_of_numerics_are_exact() -> None:
    large, small = Decimal("1e40"), Decimal("1e-40")
    assert combine("sum", large, small) - large != 0 or combine("sum", large, small) == Decimal(f"1{'0' * 40}.{'0' * 39}1")


@pytest.mark.parametrize(
    ("total", "count", "expected"),
    [
        ("7", 3, "2.3333333333333333"),
        ("10", 4, "2.5000000000000000"),
        ("-0.02", 7, "-0.00285714285714285714"),
        ("0", 7, "0.00000000000000000000"),
        ("100000000000000000000", 3, "33333333333333333333"),
    ],
)
def test_averages_have_the_digits_of_postgresql(total, count, expected) -> None:
    assert str(numeric_quotient(Decimal(total), Decimal(count)).normalize()) == str(Decimal(expected).normalize())
    assert numeric_quotient(Decimal(total), Decimal(count)) == Decimal(expected)


def test_averages_of_nothing_and_of_floats() -> None:
    assert average(None, 0) is None
    assert average(1.0, 3) == 1.0 / 3


@given(st.integers(1, 3), st.sets(st.integers(0, 1023), min_size=2), st.data())
def test_a_move_changes_the_chunk_it_leaves_and_no_other(servers, shards, data) -> None:
    routes = [Route(None, shard, f"s{shard:04d}_e1", f"pg{shard % servers}", 1) for shard in sorted(shards)]
    before = chunks_of(routes, of=1024)
    assert sorted(r.shard for chunks in before.values() for chunk in chunks for r in chunk) == sorted(shards)
    assert all(len(chunk) <= 2 * CHUNK for chunks in before.values() for chunk in chunks)
    gone = data.draw(st.sampled_from(routes))
    after = chunks_of([route for route in routes if route != gone], of=1024)
    if round(1024 / max(1, len([r for r in routes if r.server == gone.server]) - 1)) == round(
        1024 / len([r for r in routes if r.server == gone.server])
    ):
        kept = {chunk for chunk in before[gone.server] if gone not in chunk}
        assert kept <= set(after.get(gone.server, []))


def test_distinct_values_of_parts_are_counted_once() -> None:
    numbers = distinct_values(1231)
    parts = [("a", [Decimal("1.5"), Decimal("NaN"), None]), ("b", None), ("a", [Decimal("1.50"), Decimal("NaN"), Decimal(2)])]
    merged = dict(groups(parts, 1, [DISTINCT], lambda row: row, {1: numbers}))
    assert {key: len(values) for key, values in merged.items()} == {"a": 3, "b": 0}
    with pytest.raises(FanOutRefusedError, match=r"count\(DISTINCT"):
        distinct_values(3807)  # jsonb[]
