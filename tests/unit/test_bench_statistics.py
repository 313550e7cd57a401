"""Quantiles, ratios and intervals mean what they say."""

from __future__ import annotations

import random
import statistics as reference

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.statistics import bootstrap, median, quantile, ratios

seconds = st.floats(1e-7, 1e3)
values = st.lists(seconds, min_size=1, max_size=40)


@given(values)
def test_median_is_that_of_the_standard_library(given_values: list[float]) -> None:
    assert median(given_values) == pytest.approx(reference.median(given_values), rel=1e-12)


@given(st.lists(seconds, min_size=2, max_size=40))
def test_quartiles_are_those_of_the_standard_library(given_values: list[float]) -> None:
    expected = reference.quantiles(given_values, n=4, method="inclusive")
    assert [quantile(given_values, share) for share in (0.25, 0.5, 0.75)] == pytest.approx(expected, rel=1e-12)


@given(values, st.floats(0, 1), st.floats(0, 1))
def test_quantiles_rise_with_the_share_and_stay_inside(given_values: list[float], one: float, two: float) -> None:
    low, high = quantile(given_values, min(one, two)), quantile(given_values, max(one, two))
    assert min(given_values) <= low <= high <= max(given_values)


def test_no_values_have_no_quantile() -> None:
    with pytest.raises(ValueError, match="no values"):
        quantile([], 0.5)


blocks = st.lists(st.lists(seconds, min_size=1, max_size=5), min_size=1, max_size=12)


@given(blocks, st.floats(0.01, 100))
def test_ratio_to_a_multiple_of_itself_is_the_factor(rounds: list[list[float]], factor: float) -> None:
    slower = [[value * factor for value in block] for block in rounds]
    assert ratios(slower, rounds) == pytest.approx([factor] * len(rounds), rel=1e-9)
    assert ratios(slower, rounds, better="higher") == pytest.approx([1 / factor] * len(rounds), rel=1e-9)


def test_paired_ratios_are_blind_to_noise_that_both_sides_share() -> None:
    draw = random.Random(1)
    noise = [draw.uniform(1, 10) for _ in range(20)]
    found = ratios([[0.8 * n] for n in noise], [[n] for n in noise])
    assert found == pytest.approx([0.8] * 20)


def test_unpaired_sides_may_have_different_numbers_of_rounds() -> None:
    assert ratios([[2.0], [4.0], [6.0]], [[1.0], [2.0]], paired=False) == pytest.approx([2 / 1.5, 4 / 1.5, 4.0])
    with pytest.raises(ValueError, match="same number of rounds"):
        ratios([[2.0], [4.0], [6.0]], [[1.0], [2.0]])


@given(values)
def test_interval_holds_the_median_and_stays_inside(given_values: list[float]) -> None:
    interval = bootstrap(given_values, resamples=50)
    assert min(given_values) <= interval.low <= interval.high <= max(given_values)
    assert bootstrap(given_values, resamples=50) == interval


def test_interval_covers_the_true_median_about_as_often_as_promised() -> None:
    draw = random.Random(3)
    covered = 0
    for _ in range(200):
        interval = bootstrap([draw.lognormvariate(0, 0.2) for _ in range(15)], resamples=300)
        covered += interval.low <= 1 <= interval.high
    assert 0.88 <= covered / 200 <= 1
