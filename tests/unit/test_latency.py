"""The law of latencies: whoever counted what, the sum's percentile is that of all together, not too low and little too high."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardkit.core.latency import LIMITS_S, Bucket, Latencies

SECONDS = st.floats(0.0, 30_000.0) | st.floats(1e-6, 1.0) | st.sampled_from(LIMITS_S)
TAKEN = st.lists(st.tuples(st.integers(0, 3), SECONDS), max_size=300)
ONE_STEP = LIMITS_S[1] / LIMITS_S[0] * (1 + 1e-12)


def counted(taken):
    latencies = Latencies()
    latencies.add(taken)
    return latencies


def true_p99(taken, shard):
    times = sorted(seconds for where, seconds in taken if where == shard)
    return times[math.ceil(len(times) * 99 / 100) - 1]


@given(st.lists(TAKEN, max_size=5))
def test_of_any_number_of_programs_it_is_the_percentile_of_all_their_statements(programs):
    together = Latencies()
    for taken in programs:
        together.merge(Latencies(counted(taken).buckets()))  # as it goes through the catalog
    everything = [one for taken in programs for one in taken]
    found = together.p99_s()
    assert found.keys() == {shard for shard, _ in everything}
    for shard, p99_s in found.items():
        exact = true_p99(everything, shard)
        assert exact <= p99_s <= max(LIMITS_S[0], exact * ONE_STEP)
    assert found == counted(everything).p99_s()


@given(TAKEN, TAKEN)
def test_the_order_of_adding_does_not_matter(one, other):
    ab, ba = counted(one), counted(other)
    ab.merge(counted(other))
    ba.merge(counted(one))
    assert sorted(ab.buckets()) == sorted(ba.buckets()) == sorted(counted(one + other).buckets())
    assert sum(bucket.times for bucket in ab.buckets()) == len(one) + len(other)


def test_a_mean_of_percentiles_would_not_do():
    busy, idle = counted([(0, 0.001)] * 990), counted([(0, 1.0)] * 10)
    mean = (busy.p99_s()[0] + idle.p99_s()[0]) / 2
    busy.merge(idle)
    assert busy.p99_s()[0] < 0.002 < mean
    busy.add([(0, 1.0)])
    assert busy.p99_s()[0] >= 1.0


def test_what_is_out_of_bounds_is_counted_at_them():
    latencies = counted([(0, 0.0), (1, 1e9), (2, -1e-9)])
    assert latencies.p99_s() == {0: LIMITS_S[0], 1: LIMITS_S[-1], 2: LIMITS_S[0]}
    assert LIMITS_S[-1] > 3600


@pytest.mark.parametrize("bucket", [Bucket(0, len(LIMITS_S), 1), Bucket(0, -1, 1), Bucket(0, 3, 0)])
def test_nonsense_is_refused(bucket):
    with pytest.raises(ValueError, match="bucket"):
        Latencies([bucket])
