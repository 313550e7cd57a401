"""A server or the catalog refuses or goes away: the others go on, and an error of ours says what became of it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from shardkit import Settings
from shardkit.core.fleet import Why
from shardkit.errors import MigrationError, ServerDownError, ServerError
from shardkit.schema import drift, fleet
from shardkit.schema.drift import check_fleet
from shardkit.schema.fleet import Fleet
from shardkit.schema.revise import new_revision
from tests.integration.fleetlab import ROOT, FleetLab
from tests.integration.test_fleet import VERSION, whys
from tests.integration.test_fleet_revisions import MODELS

SHARDS = 4
NOWHERE = "postgresql://postgres@127.0.0.1:1/nowhere"


@pytest.fixture
def lab(shardkit_databases, tmp_path):
    return FleetLab.with_orders(shardkit_databases(2), tmp_path / "tree", shards=SHARDS)


@pytest.fixture
def half(lab):
    """Settings with which only the server pg1 is reached."""
    return Settings(catalog_url=lab.databases.catalog_url, servers={"pg2": NOWHERE})


def test_server_that_does_not_tell_its_versions_does_not_keep_the_others(lab):
    bad = lab.map.shards_on("pg2")
    with lab.shard(bad[0]) as connection:
        connection.execute("ALTER TABLE alembic_version RENAME COLUMN version_num TO something")
    lab.revise("b", "pass")
    report = lab.migrate(parallel=1)
    assert report.done == tuple(lab.map.shards_on("pg1"))
    assert whys(report) == dict.fromkeys(bad, Why.FAILED)
    assert "refused to tell its version" in report.behind[0].detail
    said = lab.run("status")
    assert (said.returncode, "Traceback" in said.stderr) == (3, False)


def test_catalog_that_goes_away_in_the_middle_is_an_error_that_says_so(lab):
    lab.revise("b", "pass")
    cut = """SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity
             WHERE datname = current_database() AND pid <> pg_backend_pid()"""

    def go_away(_done, _total, _failed):
        with lab.catalog() as catalog:
            catalog.execute(cut)

    with pytest.raises(ServerDownError, match=r"the catalog .* run the same again"):
        lab.migrate(progress=go_away)
    assert lab.migrate().complete
    assert lab.everywhere(VERSION) == {"b"}


def test_stamp_goes_on_where_it_can_and_says_where_it_could_not(lab, half):
    lab.revise("b", "pass")
    with pytest.raises(MigrationError, match=r"were stamped, .* were not: server 'pg2' does not answer"):
        Fleet(half, lab.tree).stamp("b")
    assert {lab.ask(shard, VERSION) for shard in lab.map.shards_on("pg1")} == {"b"}
    assert {lab.ask(shard, VERSION) for shard in lab.map.shards_on("pg2")} == {"a"}


def test_stamp_finds_a_shard_whose_move_ended_just_before_it_was_held(lab, monkeypatch):
    lab.revise("b", "pass")
    hold = fleet.hold_shards

    def move_and_hold(connection, shards):
        lab.flip()
        return hold(connection, shards)

    monkeypatch.setattr(fleet, "hold_shards", move_and_hold)
    assert lab.fleet.stamp("b") == SHARDS
    assert lab.ask(0, VERSION) == "b"


def test_autogenerate_beside_a_shard_that_is_behind_is_refused_in_a_line(lab):
    lab.revise("b", "pass")
    (lab.tree / "env.py").write_text("import sqlalchemy as sa\nfrom shardkit.schema import run_env\nrun_env(sa.MetaData())\n")
    with pytest.raises(MigrationError, match="not up to date"):
        new_revision(lab.tree, "more", settings=lab.settings)
    assert len(list((lab.tree / "versions").glob("*.py"))) == 2


def test_check_looks_at_other_servers_when_one_is_down(lab, half):
    here = lab.map.shards_on("pg1")[0]
    with lab.shard(here) as connection:
        connection.execute("ALTER TABLE orders ADD COLUMN surplus text")
    with pytest.raises(ServerDownError):
        check_fleet(half, lab.tree)
    command = [*lab.command("check", "--json")]
    variables = {**lab.environment, "SHARDKIT_CONFIG": str(lab.tree.parent / "half.toml")}
    (lab.tree.parent / "half.toml").write_text(f'[servers.pg2]\nurl = "{NOWHERE}"\n')
    told = subprocess.run(command, env=variables, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    assert told.returncode == 1, told
    found = json.loads(told.stdout)
    assert [one["shard"] for one in found["drifts"]] == [here]
    assert "'pg2' does not answer" in found["refused"][0]


def test_check_of_a_tree_that_a_server_refuses_is_a_line(lab):
    lab.revise("b", "op.execute('SELECT no_such_function()')")
    assert lab.fleet.stamp("b") == SHARDS
    with pytest.raises(ServerError, match="no_such_function"):
        check_fleet(lab.settings, lab.tree)


def test_models_in_the_directory_one_stands_in_are_found(lab, tmp_path):
    (tmp_path / "here_models.py").write_text(MODELS)
    program = "from shardkit.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, "migrate", "check", "--models", "here_models:Base"],
        env={**lab.environment, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    assert "CREATE TABLE customers ();" in done.stdout


def test_shard_that_is_migrated_or_moved_while_it_is_looked_at_has_not_drifted(lab, monkeypatch):
    lab.revise("b", "op.add_column('orders', sa.Column('extra', sa.Text))")
    read, once = drift.read_structures, []

    def change_and_read(connection, schemas):
        if not once:
            once.append(1)
            lab.migrate(only=frozenset(range(1, SHARDS)))
            lab.flip()
        return read(connection, schemas)

    monkeypatch.setattr(drift, "read_structures", change_and_read)
    assert check_fleet(lab.settings, lab.tree) == ([], SHARDS - 1)


def test_shard_at_an_unknown_version_is_named_and_the_others_are_looked_at(lab):
    for shard, change in (
        (1, "UPDATE alembic_version SET version_num = 'strange'"),
        (2, "ALTER TABLE orders DROP COLUMN note"),
    ):
        with lab.shard(shard) as connection:
            connection.execute(change)
    drifts, looked = check_fleet(lab.settings, lab.tree)
    assert ([one.shard for one in drifts], looked) == ([1, 2], SHARDS)
    assert "strange" in drifts[0].differences[0]


def test_shard_that_is_not_there_is_no_reference(lab):
    with lab.shard(0) as connection:
        connection.execute("DROP SCHEMA s0000_e1 CASCADE")
    with pytest.raises(MigrationError, match="to compare with"):
        check_fleet(lab.settings, lab.tree, shard=0)
