"""Whole lives of isolates on model shards, by seed: nothing is lost or counted twice, and each planted bug is found."""

from __future__ import annotations

import pytest

from shardkit.core import moving as m
from tests.sim.isolateworld import simulate
from tests.sim.lives import ends, many
from tests.sim.planted import COMMON, found, without

SHORT, LONG = 6_000, 100_000


def test_nothing_is_lost_whatever_is_killed() -> None:
    ended = ends(simulate, range(SHORT))
    assert {step for step, *_ in ended} == {m.Step.FINISHED, m.Step.ABORTED}
    assert {pin for _, pin, _ in ended} == {"S", "N"}
    assert {epoch for *_, epoch in ended} == {1, 2, 3}, "aborts, isolates and rollbacks all happened"


@pytest.mark.slow
def test_nothing_is_lost_in_a_hundred_thousand_lives() -> None:
    assert many(simulate, LONG, start=SHORT) == LONG


PROTOCOL = COMMON | {"what changed is not copied again": without(m.VerifyChanged)}
CARRIER = (
    "the curtain is not drawn",
    "rows are removed where the tenant has come back",
    "changes are listened to only after the comparison",
    "a fan-out keeps its old answers",
)


@pytest.mark.parametrize("bug", [*PROTOCOL, *CARRIER])
def test_planted_bug_is_found(bug: str) -> None:
    assert found(simulate, **({"plant": PROTOCOL[bug]} if bug in PROTOCOL else {"bug": bug}))
