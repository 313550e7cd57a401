"""The commands that carry shards, as scripts use them."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from shardkit import Settings
from shardkit.catalog.overview import current_map
from shardkit.cli import main
from shardkit.core import moving as m
from shardkit.errors import MoveInterruptedError
from shardkit.local.databases import fresh_databases
from shardkit.move import rebalance, run
from shardkit.schema.blueprint import Blueprint
from shardkit.schema.bootstrap import initialize

TABLES = """
CREATE TABLE things (id bigint DEFAULT next_id() PRIMARY KEY, name text);
INSERT INTO things (name) SELECT 'x' FROM generate_series(1, 20)
"""


@pytest.fixture
def settings(local_cluster):
    with fresh_databases(local_cluster.servers, 2) as databases:
        made = Settings(catalog_url=databases.catalog_url)
        initialize(made, servers=databases.servers, shard_count=4, blueprint=Blueprint(TABLES))
        yield made


@pytest.fixture
def shardkit(settings):
    def call(*arguments, code=0):
        environment = {"SHARDKIT_CATALOG_URL": str(settings.catalog_url), "SHARDKIT_CONFIG": None}
        result = CliRunner().invoke(main, [str(a) for a in arguments], env=environment)
        assert result.exit_code == code, result.output + repr(result.exception)
        return result

    return call


def where(settings, shard):
    place = current_map(settings).placement(shard)
    return place.server, place.epoch


def other(settings, shard):
    return {"pg1": "pg2", "pg2": "pg1"}[where(settings, shard)[0]]


def test_a_dry_run_says_what_would_be_and_changes_nothing(settings, shardkit):
    before = where(settings, 0)
    found = json.loads(shardkit("move", 0, "--to", other(settings, 0), "--dry-run", "--json").stdout)
    assert found["tables"] >= 1
    assert found["stall_ms"] > 0
    assert where(settings, 0) == before
    assert json.loads(shardkit("moves", "list", "--json").stdout) == []


def test_a_move_back_and_what_the_journal_says(settings, shardkit):
    server, epoch = where(settings, 0)
    lines = shardkit("move", 0, "--to", other(settings, 0), "--yes", "--json").stdout
    assert {"copy", "verify", "fence", "follow"} <= {
        json.loads(line)["step"] for line in lines.splitlines() if line.startswith('{"move"')
    }
    (listed,) = json.loads(shardkit("moves", "list", "--json").stdout)
    assert listed["step"] == "soak"
    assert listed["facts"]["rows"] >= 20
    assert listed["facts"]["stall_ms"] > 0
    assert "REFUSED" not in shardkit("moves", "show", listed["id"]).output
    shardkit("move", 0, "--to", server, "--yes", code=1)  # it soaks
    shardkit("moves", "abort", listed["id"], "--yes", code=1)  # and cannot be aborted any more
    shardkit("moves", "rollback", listed["id"], "--yes")
    assert where(settings, 0) == (server, epoch + 2)
    assert json.loads(shardkit("moves", "list", "--json").stdout) == []
    assert len(json.loads(shardkit("moves", "list", "--all", "--json").stdout)) == 2


def test_a_shard_is_asked_about_before_it_moves(settings, shardkit):
    shardkit("move", 1, "--to", other(settings, 1), code=2)
    shardkit("move", 1, "--to", "nowhere", "--yes", code=1)
    shardkit("move", 99, "--to", "pg1", "--yes", code=1)
    shardkit("move", 1, "--to", where(settings, 1)[0], "--yes", code=1)
    shardkit("moves", "resume", 12345, code=1)
    shardkit("move", 1, "--to", "pg1", "--max-stall", "soon", code=2)


def test_drain_and_rebalance(settings, shardkit):
    planned = json.loads(shardkit("plan", "--without", "pg2", "--json").stdout)
    assert planned["after"] == {"pg1": 4.0, "pg2": 0.0}
    shardkit("drain", "pg2", "--yes", "--parallel", 2)
    shardmap = current_map(settings)
    assert shardmap.shards_on("pg2") == []
    assert shardmap.servers["pg2"].state.value == "draining"
    assert "is draining" in shardkit("move", 0, "--to", "pg2", "--yes", code=1).output


def followers(shardkit):
    """Numbers of the moves that have not ended, the oldest first."""
    return sorted(one["id"] for one in json.loads(shardkit("moves", "list", "--json").stdout))


def test_json_of_many_moves_is_all_there_is_on_stdout(settings, shardkit):
    done = shardkit("drain", "pg2", "--yes", "--json")
    news = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["error"] for one in news if "error" in one] == [None, None]
    assert "SHARD" in done.stderr


def test_shards_that_were_drained_soak_and_are_finished_together(settings, shardkit, monkeypatch):
    many = current_map(settings).shards_on("pg2")
    shardkit("drain", "pg2", "--yes", "--soak")
    assert current_map(settings).shards_on("pg2") == []
    soaking = followers(shardkit)
    assert len(soaking) == len(many) == 2
    shardkit("server", "remove", "pg2", "--yes", code=1)  # the followers are there
    planned = json.loads(shardkit("moves", "finish", "--all", "--dry-run", "--json").stdout)
    assert [(one["id"], one["step"]) for one in planned] == [(number, "soak") for number in soaking]
    shardkit("moves", "finish", "--all", code=2)  # nobody to ask
    shardkit("moves", "finish", "--all", soaking[0], "--yes", code=2)
    shardkit("moves", "finish", "--all", "--take-over", "--yes", code=2)
    shardkit("moves", "finish", "--yes", code=2)
    assert followers(shardkit) == soaking

    def stumbles(given, number, *rest, **more):
        """The first one cannot be cleaned up just now."""

        def around(effect, do):
            if number == soaking[0] and isinstance(effect, m.Clean):
                raise MoveInterruptedError("not everything could be dropped; run it again")
            return do(effect)

        return run.go_on(given, number, *rest, around=around, **more)

    with monkeypatch.context() as patch:
        patch.setattr(rebalance, "go_on", stumbles)
        said = shardkit("moves", "finish", "--all", "--yes", code=1).output
    assert "finished 1 of 2 moves" in said
    assert "not everything could be dropped" in said
    (left,) = json.loads(shardkit("moves", "list", "--json").stdout)
    assert (left["id"], left["step"]) == (soaking[0], "finish")
    lines = [json.loads(line) for line in shardkit("moves", "finish", "--all", "--yes", "--json").stdout.splitlines()]
    assert lines[-1] == {"shard": left["shard"], "to": "pg1", "error": None}
    assert followers(shardkit) == []
    assert "finished 0 of 0 moves" in shardkit("moves", "finish", "--all").output
    shardkit("server", "remove", "pg2", "--yes")


def test_a_shard_on_its_way_back_is_not_finished_with_the_others(settings, shardkit):
    shardkit("rebalance", "--soak", "--dry-run")
    shardkit("move", 0, "--to", other(settings, 0), "--yes")
    shardkit("move", 1, "--to", other(settings, 1), "--yes")
    first, second = followers(shardkit)
    back = run.begin_rollback(settings, first)
    assert [move.id for move in rebalance.to_finish(settings)] == [second]
    shardkit("moves", "finish", "--all", "--yes")
    assert followers(shardkit) == [first, back.id]
    shardkit("moves", "resume", back.id)
    assert followers(shardkit) == []


def test_a_plan_counts_the_shards_that_soak_where_they_are(settings, shardkit):
    shardkit("move", 0, "--to", other(settings, 0), "--yes")
    shardkit("rebalance", "--soak", "--yes")
    held = {name: len(current_map(settings).shards_on(name)) for name in ("pg1", "pg2")}
    assert held == {"pg1": 2, "pg2": 2}
    assert json.loads(shardkit("plan", "--json").stdout)["moves"] == []  # though the soaking ones cannot be moved now
    assert "has a move that has not ended" in shardkit("move", 0, "--to", other(settings, 0), "--dry-run", code=1).output
    shardkit("moves", "finish", "--all", "--yes")


def test_a_new_address_names_the_moves_that_follow_the_old_one(settings, shardkit):
    there = other(settings, 0)
    was = current_map(settings).server(there).dsn
    shardkit("move", 0, "--to", there, "--yes")
    (move,) = json.loads(shardkit("moves", "list", "--json").stdout)
    said = shardkit("server", "change", there, "--url", was.replace("127.0.0.1", "localhost"), "--yes").output
    assert f"not ended: moves {move['id']}." in said
    shardkit("moves", "finish", move["id"], "--yes")
    assert "not ended" not in shardkit("server", "change", there, "--url", was, "--yes").output


def test_a_drain_names_the_shards_it_has_to_leave_and_does_not_end_as_if_done(settings, shardkit):
    first = where(settings, 0)[0]
    number = run.begin(settings, 0, other(settings, 0)).id  # and it stops there
    said = shardkit("drain", first, "--yes", code=3).output
    assert f"shard 0 is left out: its move {number} from {first} to {other(settings, 0)} is at step planned" in said
    assert "is left out" in shardkit("drain", first, "--yes", code=3).output
    shardkit("moves", "resume", number)
    (soaking,) = [move for move in rebalance.to_finish(settings) if move.id == number]
    shardkit("drain", first, "--yes")
    assert current_map(settings).shards_on(first) == []
    assert rebalance.waiting(settings) == []  # it is where it should be,
    assert rebalance.waiting(settings, without=soaking.target) == [soaking]  # but could not go from there
    shardkit("moves", "finish", number, "--yes")


def test_stamp_names_the_shards_that_a_move_keeps_from_it(settings, shardkit, tmp_path):
    (tmp_path / "versions").mkdir()
    (tmp_path / "env.py").write_text("from shardkit.schema import run_env\n\nrun_env(None)\n")
    (tmp_path / "versions" / "a.py").write_text('revision = "a"\ndown_revision = None\n\n\ndef upgrade(): ...\n')
    number = run.begin(settings, 0, other(settings, 0)).id
    said = shardkit("migrate", "stamp", "head", "--tree", tmp_path, "--yes", code=3).output
    assert "3 shards stamped" in said
    assert "1 behind: being moved" in said
    shardkit("moves", "abort", number, "--yes")
    assert "4 shards stamped" in shardkit("migrate", "stamp", "head", "--tree", tmp_path, "--yes").output
