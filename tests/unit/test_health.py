"""The doctor's judgement: every check is planted somewhere, problems come first, and silence is not health."""

from __future__ import annotations

import re
from pathlib import Path
from uuid import UUID

import pytest

from shardkit.core.health import CHECKS, judge
from shardkit.core.health.facts import Facts, Limits, MoveFacts, ProgramFacts, ServerFacts, SlotFacts
from shardkit.core.moving import Step
from shardkit.core.names import relay_slot_name, stream_name
from shardkit.core.shardmap import Placement, Server, ServerState, ShardMap

TESTS = Path(__file__).parents[1] / "integration"
ID = UUID(int=1)
LIMITS = Limits(connection_budget=30, fan_out_connections=4, prepared_max=512, pooled=False)


def facts(servers=None, state=ServerState.ACTIVE, **given):
    pg1 = Server("pg1", "dbname=x", ID, state=state)
    found = ShardMap(ID, 7, 2, "str", {"pg1": pg1}, {0: Placement("pg1", 1), 1: Placement("pg1", 1)})
    return Facts(map=found, servers=servers or {"pg1": "it does not answer"}, limits=LIMITS, **given)


def test_every_check_is_planted_on_real_servers():
    source = "".join(path.read_text("utf-8") for path in TESTS.glob("test_doctor*.py"))
    planted = {
        name
        for call in re.findall(r'(?:found\(fleet, |checks=\[)((?:"[a-z-]+"(?:, )?)+)', source)
        for name in re.findall(r'"([a-z-]+)"', call)
    }
    assert planted - {"standby"} == CHECKS.keys() - {"standby"}
    assert "standby" in source


def test_every_check_says_what_it_is_for():
    assert all(check.__doc__ and check.__doc__.strip().endswith(".") for check in CHECKS.values())


def test_problems_come_before_risks_and_each_has_a_remedy():
    program = ProgramFacts("web", "127.0.0.1:1", 3, 30)
    stopped = MoveFacts(4, 1, "pg1", "pg2", Step.COPY, held=False, idle_s=5.0, problem="no room\nmore")
    found = judge(facts(programs=(program,), moves=(stopped,)))
    assert [(one.severity, one.check) for one in found] == [("problem", "servers"), ("risk", "moves"), ("risk", "programs")]
    assert all(one.what and one.remedy for one in found)
    assert "more" not in found[1].what
    assert "abort 4" in found[1].remedy


def test_a_move_past_the_point_of_no_return_is_not_to_be_aborted():
    stopped = MoveFacts(4, 1, "pg1", "pg2", Step.FOLLOW, held=False, idle_s=5.0, problem="lost contact")
    assert "abort" not in judge(facts(moves=(stopped,)), checks=["moves"])[0].remedy


def test_a_server_that_is_said_to_be_down_is_a_risk_only():
    assert judge(facts(state=ServerState.DOWN), checks=["servers"])[0].severity == "risk"


def test_of_a_server_that_is_silent_nothing_is_claimed():
    assert {one.check for one in judge(facts())} == {"servers"}


def test_checks_that_were_not_asked_for_are_silent():
    assert judge(facts(), checks=["clocks"]) == ()


@pytest.mark.parametrize(
    ("server", "relays", "mb", "found"),
    [
        ("pg1", 0, 10, None),  # between two runs of `relay --once`
        ("pg1", 0, 70, ("risk", "no cache relay")),
        ("pg1", 1, 70, None),
        ("pg1", 1, 2000, ("risk", "far behind")),
        ("pg0", 1, 0, ("problem", "nothing to follow")),
    ],
)
def test_slot_of_a_cache_relay(server, relays, mb, found):
    slot = SlotFacts(relay_slot_name(ID, server), active=False, status="reserved", retained_bytes=mb << 20)
    servers = {"pg1": ServerFacts(version=180000, slots=(slot,), relays=relays)}
    findings = [(one.severity, one.what) for one in judge(facts(servers=servers), checks=["slots"])]
    assert len(findings) == (found is not None)
    for severity, what in findings:
        assert severity == found[0]
        assert found[1] in what


@pytest.mark.parametrize(
    ("step", "held", "active", "mb", "remedy"),
    [
        (Step.SOAK, False, False, 2000, "moves finish 4"),
        (Step.VERIFY, False, False, 2000, "moves resume 4"),
        (Step.SOAK, False, True, 2000, None),
        (Step.SOAK, False, False, 900, None),
        (Step.COPY, True, False, 2000, None),
    ],
)
def test_slot_of_a_move_that_nobody_reads(step, held, active, mb, remedy):
    slot = SlotFacts(stream_name(ID, 4, "back"), active=active, status="extended", retained_bytes=mb << 20)
    move = MoveFacts(4, 1, "pg1", "pg2", step, held=held, idle_s=5.0)
    servers = {"pg1": ServerFacts(version=180000, slots=(slot,))}
    found = judge(facts(servers=servers, moves=(move,)), checks=["slots"])
    assert [one.severity for one in found] == (["risk"] if remedy else [])
    assert all(remedy in one.remedy and "of move 4" in one.what for one in found)
