"""Whole lives of moves on model servers, by seed: whatever is killed, nothing is lost, and each planted bug is found."""

from __future__ import annotations

import pytest

from shardkit.core import moving as m
from tests.sim.lives import ends, many
from tests.sim.moveworld import simulate
from tests.sim.planted import COMMON, altered, found, without

SHORT, LONG = 10_000, 100_000


def test_nothing_is_lost_whatever_is_killed() -> None:
    ended = ends(simulate, range(SHORT))
    assert {step for step, _ in ended} == {m.Step.FINISHED, m.Step.ABORTED}
    assert {epoch for _, (_, epoch) in ended} == {1, 2, 3}, "aborts, moves and rollbacks all happened"


@pytest.mark.slow
def test_nothing_is_lost_in_a_hundred_thousand_lives() -> None:
    assert many(simulate, LONG, start=SHORT) == LONG


BUGS = COMMON | {
    "sequences without a margin": altered(
        lambda effect, _: (m.CarrySequences(0) if isinstance(effect, m.CarrySequences) else effect,)
    ),
    "sequences not carried": without(m.CarrySequences),
    "way back not armed before the flip": without(m.Arm),
}


@pytest.mark.parametrize("bug", BUGS)
def test_planted_protocol_bug_is_found(bug: str) -> None:
    assert found(simulate, plant=BUGS[bug])
