"""Which shards a run takes: those that were chosen and no others, canaries first, and nobody is waited for who was left out."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

import pytest

from shardkit.core.fleet import Why
from shardkit.core.names import SHARD_LOCK_CLASS
from shardkit.errors import SettingsError, UnknownShardError
from shardkit.schema import run
from shardkit.schema.drift import check_fleet
from tests.integration.fleetlab import FleetLab
from tests.integration.test_fleet import MOVES, OPEN_MOVE, VERSION, whys

SHARDS = 8


@pytest.fixture
def lab(shardkit_databases, tmp_path):
    return FleetLab.with_orders(shardkit_databases(2), tmp_path / "tree", shards=SHARDS)


def test_shards_that_are_not_there_are_refused(lab):
    lab.revise("b", "pass")
    for chosen in ({"only": frozenset({1, 8})}, {"exclude": frozenset({500, 501})}):
        with pytest.raises(UnknownShardError, match="nothing was done"):
            lab.migrate(**chosen)
    with pytest.raises(SettingsError, match="no shard is left"):
        lab.migrate(only=frozenset({1}), exclude=frozenset({1}))
    with pytest.raises(UnknownShardError):
        lab.fleet.stamp("b", only=frozenset({8}))
    with pytest.raises(UnknownShardError):
        check_fleet(lab.settings, lab.tree, only=frozenset({8}))
    assert lab.everywhere(VERSION) == {"a"}
    refused = lab.run("upgrade", "--yes", "--only", "9-8")
    assert (refused.returncode, "ends before it begins" in refused.stderr) == (2, True)
    refused = lab.run("upgrade", "--yes", "--patience", "nan")
    assert (refused.returncode, "Traceback" in refused.stderr) == (1, False)


def test_move_of_a_shard_that_was_left_out_keeps_nobody(lab):
    lab.revise("b", "pass")
    with lab.catalog() as catalog:
        catalog.execute(MOVES)
        catalog.execute(OPEN_MOVE, (6,))
    report = lab.migrate(only=frozenset({1, 2}), moves_wait_s=3600.0)
    assert (report.complete, report.done, whys(report)[6]) == (True, (1, 2), Why.LEFT_OUT)


def test_canary_that_is_moved_away_is_replaced_by_another(lab):
    lab.revise("b", "op.execute('SELECT 1 / 0')")
    with lab.catalog() as mover:
        mover.execute("SELECT pg_advisory_lock(%s, 0)", (SHARD_LOCK_CLASS,))
        report = lab.migrate(max_failures=100)
    assert [shard for shard, why in whys(report).items() if why is Why.FAILED] == [1]
    assert whys(report)[0] is Why.MOVING


def test_shards_that_were_left_out_are_not_mended_either(lab):
    for shard in (3, 6):
        with lab.shard(shard) as connection:
            connection.execute("DROP TABLE shardkit_outbox")
    report = lab.migrate(exclude=frozenset({6}))
    assert (report.complete, report.mended) == (True, (3,))
    assert whys(lab.fleet.status()) == {6: Why.INCOMPLETE}


def test_moves_are_waited_for_also_when_the_run_took_longer_than_the_wait(lab, monkeypatch):
    """The wait begins where nothing else is left to do."""
    lab.revise("b", "pass")
    with lab.catalog() as catalog:
        catalog.execute(MOVES)
        catalog.execute(OPEN_MOVE, (6,))
    late, looks, moving_shards = [0.0], [], run.moving_shards
    monkeypatch.setattr(run, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + late[0]))

    def hours_pass(_done, _total, _failed):
        late[0] = 7200.0

    def move_ends(connection, shards):
        if late[0]:
            looks.append(1)
            if len(looks) > 4:
                with lab.catalog() as catalog:
                    catalog.execute("UPDATE shardkit_catalog.moves SET ended = true")
        return moving_shards(connection, shards)

    monkeypatch.setattr(run, "moving_shards", move_ends)
    assert lab.migrate(moves_wait_s=3600.0, progress=hours_pass).done == tuple(range(SHARDS))


def test_run_that_was_interrupted_is_not_shown_as_running(lab):
    lab.revise("b", "pass")

    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lab.migrate(progress=interrupt)
    assert lab.fleet.runs()[0]["state"] == "failed"
    assert lab.migrate().complete


def test_json_is_printed_also_when_there_is_nothing_to_do(lab):
    told = lab.run("upgrade", "--json")
    assert (told.returncode, json.loads(told.stdout)["complete"]) == (0, True)


def test_shards_that_wait_for_a_deploy_are_not_said_to_be_at_the_target(lab):
    lab.revise("b", "pass", mark='deploy = "post"')
    for command in (("upgrade", "--yes"), ("status",)):
        said = lab.run(*command, "--phase", "pre")
        assert (said.returncode, "at b, or before the first post-deploy" in said.stdout) == (0, True), said
    assert lab.everywhere(VERSION) == {"a"}
