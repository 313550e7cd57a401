"""Whole lives of isolates on model shards, by seed: nothing is lost or counted twice, and each planted bug is found."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ProcessPoolExecutor

import pytest

from shardkit.core import moving as m
from tests.sim.isolateworld import simulate
from tests.sim.moveworld import Violation
from tests.sim.test_moves_model import before, copy_again, without

SHORT, LONG = 6_000, 100_000


def _lives(seeds: range) -> Counter:
    return Counter(simulate(seed) for seed in seeds)


def test_nothing_is_lost_whatever_is_killed() -> None:
    ends = _lives(range(SHORT))
    assert {step for step, *_ in ends} == {m.Step.FINISHED, m.Step.ABORTED}
    assert {pin for _, pin, _ in ends} == {"S", "N"}
    assert {epoch for *_, epoch in ends} == {1, 2, 3}, "aborts, isolates and rollbacks all happened"


@pytest.mark.slow
def test_nothing_is_lost_in_a_hundred_thousand_lives() -> None:
    parts = [range(start, start + 10_000) for start in range(SHORT, SHORT + LONG, 10_000)]
    with ProcessPoolExecutor(2) as pool:
        assert sum(sum(part.values()) for part in pool.map(_lives, parts)) == LONG


def unlocked(script, run):
    run.bug = "no lock"
    return without(m.Lock)(script, run)


PROTOCOL = {
    "flip before the fence": before(m.Flip(), m.Lock),
    "no wait for the mark": without(m.AwaitMark),
    "what changed is not copied again": without(m.VerifyChanged),
    "copy again on top of a begun copy": copy_again,
    "new shard opened before the fence": before(m.Open(), m.Lock),
    "fence without a lock": unlocked,
    "cleanup before the flip": before(m.Clean(), m.Open),
    "an earlier run is not expelled": without(m.Expel),
    "the fence's outcome is believed, not asked": without(m.AskFence),
    "fence not committed": without(m.CommitFence),
}
CARRIER = (
    "the curtain is not drawn",
    "rows are removed where the tenant has come back",
    "changes are listened to only after the comparison",
    "a fan-out keeps its old answers",
)


@pytest.mark.parametrize("bug", [*PROTOCOL, *CARRIER])
def test_planted_bug_is_found(bug: str) -> None:
    planted = {"plant": PROTOCOL[bug]} if bug in PROTOCOL else {"bug": bug}
    for seed in range(5_000):
        try:
            simulate(seed, **planted)
        except Violation:
            return
        except (KeyError, AttributeError):  # the model cannot do what it is told: no life that ends wrongly, look on
            continue
    pytest.fail(f"not found in 5,000 lives: {bug}")
