"""Whole lives of moves on model servers, by seed: whatever is killed, nothing is lost, and each planted bug is found."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ProcessPoolExecutor

import pytest

from shardkit.core import moving as m
from tests.sim.moveworld import Violation, simulate

SHORT, LONG = 10_000, 100_000


def _lives(seeds: range) -> Counter:
    return Counter(simulate(seed) for seed in seeds)


def test_nothing_is_lost_whatever_is_killed() -> None:
    ends = _lives(range(SHORT))
    assert {step for step, _ in ends} == {m.Step.FINISHED, m.Step.ABORTED}
    assert {epoch for _, (_, epoch) in ends} == {1, 2, 3}, "aborts, moves and rollbacks all happened"


@pytest.mark.slow
def test_nothing_is_lost_in_a_hundred_thousand_lives() -> None:
    parts = [range(start, start + 10_000) for start in range(SHORT, SHORT + LONG, 10_000)]
    with ProcessPoolExecutor(2) as pool:
        assert sum(sum(part.values()) for part in pool.map(_lives, parts)) == LONG


def without(*kinds):
    """The script with some effects left out."""

    def plant(script, run):
        run.no_lock = m.Lock in kinds
        result, error = None, None
        while True:
            try:
                effect = script.throw(error) if error else script.send(result)
            except StopIteration as end:
                return end.value
            result = error = None
            if not isinstance(effect, kinds):
                try:
                    result = yield effect
                except Exception as exc:
                    error = exc

    return plant


def before(early, late):
    """The script with effect *early* done ahead of each *late*."""

    def plant(script, _run):
        result, error = None, None
        while True:
            try:
                effect = script.throw(error) if error else script.send(result)
            except StopIteration as end:
                return end.value
            result = error = None
            try:
                if isinstance(effect, late):
                    yield early
                result = yield effect
            except Exception as exc:
                error = exc

    return plant


def copy_again(script, run):
    """The script that forgets to clean before it copies."""
    result, error = None, None
    while True:
        try:
            effect = script.throw(error) if error else script.send(result)
        except StopIteration as end:
            return end.value
        result = error = None
        if not (isinstance(effect, m.Clean) and run.w.step < m.Step.STRUCTURE):
            try:
                result = yield effect
            except Exception as exc:
                error = exc


def no_margin(script, _run):
    result, error = None, None
    while True:
        try:
            effect = script.throw(error) if error else script.send(result)
        except StopIteration as end:
            return end.value
        result = error = None
        try:
            result = yield m.CarrySequences(0) if isinstance(effect, m.CarrySequences) else effect
        except Exception as exc:
            error = exc


BUGS = {
    "flip before the fence": before(m.Flip(), m.Lock),
    "no wait for the mark": without(m.AwaitMark),
    "copy again on top of a begun copy": copy_again,
    "target opened before the fence": before(m.Open(), m.Lock),
    "sequences without a margin": no_margin,
    "sequences not carried": without(m.CarrySequences),
    "fence without a lock": without(m.Lock),
    "cleanup before the flip": before(m.Clean(), m.Open),
    "an earlier run is not expelled": without(m.Expel),
    "the fence's outcome is believed, not asked": without(m.AskFence),
    "way back not armed before the flip": without(m.Arm),
    "fence not committed": without(m.CommitFence),
}


@pytest.mark.parametrize("bug", BUGS)
def test_planted_protocol_bug_is_found(bug: str) -> None:
    for seed in range(5_000):
        try:
            simulate(seed, plant=BUGS[bug])
        except Violation:
            return
        except (KeyError, AttributeError):  # the model cannot do what it is told: no life that ends wrongly, look on
            continue
    pytest.fail(f"not found in 5,000 lives: {bug}")
