"""The plan of a fleet migration: who needs what, in which wave, and when to stop."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardkit.core.fleet import (
    MOST_IN_ONE_TRANSACTION,
    QUICK_MS,
    Entry,
    Found,
    Options,
    State,
    Step,
    Why,
    batch_size,
    connections,
    in_phase,
    lock_timeout_ms,
    must_stop,
    pause_s,
    plan,
    settled,
    waves,
    why_behind,
)
from shardkit.errors import SettingsError

LINE = ("a", "b", "c")


def path(version):
    at = LINE.index(version[0]) + 1 if version and version[0] in LINE else 0
    if version and version[0] not in LINE:
        return None
    steps, before = [], version
    for revision in LINE[at:]:
        steps.append(Step(revision, before, (revision,)))
        before = (revision,)
    return tuple(steps)


def found(shard, version=("a",), why=None):
    return Found(shard, "pg1", version, why)


versions = st.sampled_from([(), ("a",), ("b",), ("c",), ("lost",), None])


@given(st.lists(versions, max_size=40), st.integers(0, 5), st.integers(1, 7), st.frozensets(st.integers(0, 40)))
def test_every_shard_is_in_exactly_one_place(seen, canary, wave, exclude):
    options = Options(canary=canary, wave=wave, exclude=exclude)
    shards = [found(shard, version, Why.DOWN if version is None else None) for shard, version in enumerate(seen)]
    result = plan(shards, path, options)
    working = [shard for one in result.waves for shard in one]
    behind = [one.shard for one in result.behind]
    current = [one.shard for one in shards if one.version == ("c",)]
    unread = [one.shard for one in shards if one.version is None and one.shard in exclude]
    assert sorted(working + behind + current + unread) == list(range(len(seen)))
    assert result.current == len(current)
    assert set(working) == set(result.steps)
    assert all(len(one) <= max(wave, canary) for one in result.waves)
    for shard, steps in result.steps.items():
        assert steps[0].before == shards[shard].version
        assert all(left.after == right.before for left, right in pairwise(steps))
        assert steps[-1].after == ("c",)


def test_canary_goes_first_and_alone():
    assert list(waves([3, 4, 5, 6, 7], canary=1, wave=3)) == [(3,), (4, 5, 6), (7,)]
    assert list(waves([3, 4], canary=0, wave=3)) == [(3, 4)]
    assert list(waves([], canary=1, wave=3)) == []


def test_unknown_version_is_said_and_not_touched():
    result = plan([found(1, ("zzz",))], path, Options())
    assert not result.waves
    assert [(one.shard, one.why) for one in result.behind] == [(1, Why.LOST)]
    assert "zzz" in result.behind[0].detail


def test_moving_shard_is_behind_but_one_that_needs_nothing_is_not():
    result = plan([found(1, ("a",), Why.MOVING), found(2, ("c",), Why.MOVING)], path, Options())
    assert [(one.shard, one.why, one.missing) for one in result.behind] == [(1, Why.MOVING, 2)]
    assert result.current == 1


def test_only_and_exclude():
    shards = [found(shard) for shard in range(6)]
    result = plan(shards, path, Options(only=frozenset({1, 2, 3}), exclude=frozenset({2})))
    assert [shard for wave in result.waves for shard in wave] == [1, 3]
    assert {one.why for one in result.behind} == {Why.LEFT_OUT}


def test_shard_that_failed_before_goes_last():
    ledger = {(0, "b"): Entry(0, "b", State.FAILED, 1, "boom")}
    result = plan([found(0), found(1)], path, Options(), ledger)
    assert result.waves == ((1,), (0,))


@pytest.mark.parametrize(
    ("state", "why"), [(State.FAILED, Why.FAILED), (State.RUNNING, Why.STOPPED), (State.PENDING, Why.WAITING)]
)
def test_reason_comes_from_the_ledger(state, why):
    one = found(4)
    said = why_behind(one, path(one.version), {(4, "b"): Entry(4, "b", state, 2, "boom")})
    assert said.why is why
    assert ("boom" in said.detail) == (state is State.FAILED)


def test_done_in_the_ledger_does_not_make_it_so():
    one = found(4)
    said = why_behind(one, path(one.version), {(4, "b"): Entry(4, "b", State.DONE)})
    assert (said.why, said.missing) == (Why.WAITING, 2)


def test_work_of_a_killed_runner_is_settled_by_what_the_shards_say():
    ledger = {
        (shard, "b"): Entry(shard, "b", state, up=up)
        for shard, state, up in [
            (1, State.RUNNING, True),
            (2, State.RUNNING, True),
            (3, State.FAILED, False),
            (4, State.DONE, True),
        ]
    }
    shards = [found(1, ("b",)), found(2, ("a",)), found(3, ("a",)), found(4, ("a",))]
    over = settled(shards, ledger, lambda version: LINE[: LINE.index(version[0]) + 1])
    assert [entry.shard for entry in over] == [1, 3]


def test_one_failing_canary_stops_everything():
    assert must_stop(failures=1, canary=True, max_failures=100)
    assert not must_stop(failures=3, canary=False, max_failures=3)
    assert must_stop(failures=4, canary=False, max_failures=3)


def test_pre_deploy_ends_before_the_first_post_deploy_revision():
    steps = path(())
    assert [step.revision for step in in_phase(steps, {"b"}, "pre")] == ["a"]
    assert [step.revision for step in in_phase(steps, {"b"}, "post")] == ["a", "b", "c"]
    assert in_phase(steps, set(), "pre") == steps


@given(st.floats(0, 1e6), st.integers(1, 100), st.integers(1, 60_000))
def test_batch_holds_its_locks_for_less_than_the_budget(slowest_ms, batch, budget_ms):
    size = batch_size(slowest_ms=slowest_ms, options=Options(batch=batch, budget_ms=budget_ms))
    assert 1 <= size <= min(max(batch, 1), MOST_IN_ONE_TRANSACTION)
    assert size == 1 or size * slowest_ms <= budget_ms


def test_untimed_revision_goes_alone():
    assert batch_size(slowest_ms=None, options=Options()) == 1


@given(st.none() | st.floats(0, 1e6), st.integers(1, 64))
def test_only_what_is_quick_goes_through_fewer_connections_than_allowed(slowest_ms, parallel):
    taken = connections(slowest_ms=slowest_ms, options=Options(parallel=parallel))
    quick = slowest_ms is not None and slowest_ms < QUICK_MS
    assert taken == (min(2, parallel) if quick else parallel)


@given(st.integers(1, 190))
def test_all_lock_waits_of_a_transaction_fit_the_budget(statements):
    assert statements * lock_timeout_ms(statements=statements, options=Options(budget_ms=1000)) <= 1000


@given(st.integers(1, 50), st.floats(0, 1))
def test_pauses_grow_and_end(attempt, chance):
    assert 0 < pause_s(attempt, chance=chance) <= 5


def test_shard_that_was_left_out_is_waited_for_by_nobody_whatever_else_it_is():
    shards = [found(1, ("a",), Why.MOVING), found(2, ("zzz",)), found(3, None, Why.DOWN), found(4, ("a",)), found(5, ("c",))]
    result = plan(shards, path, Options(only=frozenset({4, 5})))
    assert {one.shard: one.why for one in result.behind} == {1: Why.LEFT_OUT, 2: Why.LEFT_OUT}
    assert (result.waves, result.current) == (((4,),), 1)


@pytest.mark.parametrize(
    "wrong", [{"patience_s": float("nan")}, {"patience_s": float("inf")}, {"moves_wait_s": -1.0}, {"budget_ms": 10**12}]
)
def test_waits_without_an_end_are_refused(wrong):
    with pytest.raises(SettingsError, match="nothing was done"):
        Options(**wrong)
