"""The doctor finds what was begun and not ended; each fault is planted on real servers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from uuid import UUID

import psycopg
import pytest
from doctorlab import found, only
from fleet import fleet_on
from psycopg import sql

from shardkit import ShardKit
from shardkit.catalog import changes
from shardkit.catalog.decisions import Decisions
from shardkit.catalog.journal import begin
from shardkit.catalog.pulse import take_pulse
from shardkit.catalog.rows import load_map
from shardkit.core.names import RELAY_SESSION, gid, relay_slot_name, stream_name
from shardkit.db.relayslots import drop_relay_slots
from shardkit.doctor import diagnose, fix, plan_fixes
from tests.acceptance.program import environment, refused, run, settings_file


@pytest.fixture(scope="module")
def fleet(local_cluster):
    with fleet_on(local_cluster, shard_count=4) as fleet:
        yield fleet


@contextmanager
def a_move(fleet):
    """A move that was written down and is worked on by nobody."""
    route = fleet.map.route(0)
    with fleet.admin() as catalog:
        move = begin(catalog, shard=0, source=route.server, target=fleet.other(route.server), epoch=route.epoch)
        try:
            yield catalog, move
        finally:
            catalog.execute("DELETE FROM shardkit_catalog.moves WHERE id = %s", (move.id,))


def test_slots_and_streams_of_a_move_that_has_ended(fleet):
    name = stream_name(fleet.map.cluster_id, 999, "out")
    with fleet.admin("pg1") as connection:
        connection.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (name,))
        connection.execute(sql.SQL("CREATE PUBLICATION {}").format(sql.Identifier(name)))
        make = sql.SQL("CREATE SUBSCRIPTION {0} CONNECTION 'dbname=x' PUBLICATION {0} WITH (connect = false)")
        connection.execute("SET client_min_messages = error")
        connection.execute(make.format(sql.Identifier(name)))
        try:
            assert f"the slot {name} belongs to a move that has ended" in only(found(fleet, "slots"))
            kinds = sorted(what.split(" ")[1] for _, _, what in found(fleet, "streams"))
            assert kinds == ["publication", "subscription"]
            for finding in diagnose(fleet.settings(), checks=["slots", "streams"]).findings:
                for statement in finding.remedy.split("; "):  # the remedy is what it says
                    connection.execute(statement)
            assert found(fleet, "slots", "streams") == []
        finally:
            connection.execute(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s", (name,)
            )


def test_slots_that_no_relay_reads(fleet):
    cluster = fleet.map.cluster_id
    with fleet.admin("pg1") as connection:
        for name in (relay_slot_name(cluster, "pg1"), relay_slot_name(cluster, "before")):
            connection.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (name,))
        try:
            assert f"the slot {relay_slot_name(cluster, 'before')} was made by a cache relay" in only(found(fleet, "slots"))
            connection.execute(
                "SELECT pg_logical_emit_message(false, 'test', repeat('x', 10485760)) FROM generate_series(1, 7)"
            )
            texts = [what for _, _, what in found(fleet, "slots")]
            assert any(f"no cache relay is connected to read the slot {relay_slot_name(cluster, 'pg1')}" in t for t in texts)
            with psycopg.connect(fleet.servers["pg1"], application_name=RELAY_SESSION):
                assert "was made by a cache relay" in only(found(fleet, "slots"))
            assert sorted(drop_relay_slots(connection, cluster_id=cluster)) == [
                relay_slot_name(cluster, "before"),
                relay_slot_name(cluster, "pg1"),
            ]
            assert found(fleet, "slots") == []
        finally:
            drop_relay_slots(connection, cluster_id=cluster)


def test_slots_of_a_move_under_way_are_let_alone(fleet):
    with a_move(fleet) as (_, move), fleet.admin("pg1") as connection:
        name = stream_name(fleet.map.cluster_id, move.id, "back")
        connection.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (name,))
        try:
            assert found(fleet, "slots") == []
        finally:
            connection.execute("SELECT pg_drop_replication_slot(%s)", (name,))


def test_a_move_that_nobody_works_on(fleet):
    with a_move(fleet) as (catalog, move):
        assert found(fleet, "moves") == []  # it has only just begun
        catalog.execute("UPDATE shardkit_catalog.moves SET problem = 'no room' WHERE id = %s", (move.id,))
        assert only(found(fleet, "moves")).endswith("stopped at planned: no room")
        catalog.execute(
            "UPDATE shardkit_catalog.moves SET problem = NULL, updated_at = now() - interval '1 hour' WHERE id = %s", (move.id,)
        )
        assert "nobody works on it for 60 min" in only(found(fleet, "moves"))
        with fleet.admin() as operator:
            operator.execute("SELECT pg_advisory_lock(1936420214, %s)", (move.id,))
            assert found(fleet, "moves") == []
        catalog.execute("UPDATE shardkit_catalog.moves SET step = 'soak' WHERE id = %s", (move.id,))
        assert found(fleet, "moves") == []


def prepare(fleet, server, name, statement):
    """Leave *statement* prepared as *name*, by a session that is gone."""
    with psycopg.connect(fleet.servers[server], autocommit=True) as connection:
        connection.execute("BEGIN")
        connection.execute(statement)
        connection.execute(sql.SQL("PREPARE TRANSACTION {}").format(sql.Literal(name)))


@pytest.fixture
def in_doubt(fleet):
    """Two orphaned parts: one whose transaction was decided, one of which nobody wrote anything down."""
    cluster = fleet.map.cluster_id.hex
    decided, nothing = "a" * 32, "b" * 32
    orders = {route.server: route for route in map(fleet.map.route, range(4))}
    notes = {}
    for txn, server, note in ((decided, "pg1", "kept"), (nothing, "pg2", "dropped")):
        tenant = next(t for n in range(999) if fleet.map.locate(t := f"doubt-{n}").schema == orders[server].schema)
        add = sql.SQL("INSERT INTO {} (id, tenant_id, note) VALUES (1, {}, {})").format(
            sql.Identifier(orders[server].schema, "orders"), tenant, note
        )
        prepare(
            fleet,
            server,
            gid(cluster, txn, 0, 1),
            sql.SQL("SET LOCAL ROLE shardkit_app; SET LOCAL shardkit.tenant = {}; ").format(tenant) + add,
        )
        notes[note] = tenant
    decisions = Decisions(fleet.settings())
    decisions.decide(UUID(decided), "commit", ["pg1"], within_s=60)
    decisions.close()
    yield notes
    for server in fleet.servers:
        with fleet.admin(server) as connection:
            for (name,) in connection.execute(
                "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"
            ).fetchall():
                connection.execute(sql.SQL("ROLLBACK PREPARED {}").format(sql.Literal(name)))
            for (table,) in connection.execute("SELECT schemaname FROM pg_tables WHERE tablename = 'orders'").fetchall():
                connection.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(table, "orders")))


def test_transactions_in_doubt_are_found_and_ended_by_the_record(fleet, in_doubt, tmp_path, eventually):
    eventually(lambda: len(found(fleet, "prepared")) == 2)  # their patience is a second
    texts = {where: what for _, where, what in found(fleet, "prepared")}
    assert texts["pg2"].endswith("nothing was decided, so it is to be rolled back")
    config = settings_file(tmp_path / "shardkit.toml", fleet)
    arguments = ("doctor", "--only", "prepared", "--config", config)
    assert "shardkit doctor --fix" in run(*arguments, code=3).stdout
    dry = run(*arguments, "--fix", "--dry-run")
    assert "nothing was changed" in dry.stderr
    assert "pg1: commit the prepared transaction" in dry.stderr
    assert "pg2: abort the prepared transaction" in dry.stderr
    assert "give --yes" in refused(*arguments, "--fix", code=2)
    assert len(found(fleet, "prepared")) == 2
    assert run(*arguments, "--fix", "--yes").stdout == ""
    assert found(fleet, "prepared") == []
    with ShardKit(settings=fleet.settings()) as kit:
        kept = {note: fleet.count(kit, tenant) for note, tenant in in_doubt.items()}
    assert kept == {"kept": 1, "dropped": 0}


def test_a_prepared_transaction_of_somebody_else_is_named_and_never_touched(fleet, monkeypatch):
    monkeypatch.setattr("shardkit.core.health.leftovers.SETTLED_S", 0.0)
    prepare(fleet, "pg1", "a stranger's", "SELECT pg_current_xact_id()")
    try:
        assert "(a stranger's)" in only(found(fleet, "prepared"))
        diagnosis = diagnose(fleet.settings(), checks=["prepared"])
        assert plan_fixes(diagnosis) == ()
        fix(fleet.settings(), diagnosis)
        assert found(fleet, "prepared")
    finally:
        with fleet.admin("pg1") as connection:
            connection.execute("ROLLBACK PREPARED 'a stranger''s'")


HANGS = """
import sys
from shardkit import ShardKit
kit = ShardKit(sys.argv[1], application_name="a worker", connect_timeout_s=60)
print("up", flush=True)
sys.stdin.read()
"""


def test_an_outbox_that_nobody_empties(fleet):
    route = fleet.map.route(2)
    effect = (
        "INSERT INTO {} (from_tenant, to_tenant, kind, payload, created_at) VALUES ('a', 'b', 'k', '1', now() - {}::interval)"
    )
    marker = "INSERT INTO {} (xid, names, created_at) VALUES (1, '{{}}', now() - {}::interval)"
    with fleet.admin(route.server) as connection:
        for table, add, says in (
            ("shardkit_outbox", effect, "1 effects on other tenants; they wait in 1 shards, the oldest for 60 min"),
            ("shardkit_cache_outbox", marker, "1 transactions whose markers Redis has not got"),
        ):
            where = sql.Identifier(route.schema, table)
            connection.execute(sql.SQL(add).format(where, "1 minute"))
            assert found(fleet, "outbox") == []  # that is no time
            connection.execute(sql.SQL("DELETE FROM {}").format(where))
            connection.execute(sql.SQL(add).format(where, "1 hour"))
            assert says in only(found(fleet, "outbox"))
            connection.execute(sql.SQL("DELETE FROM {}").format(where))


def test_a_catalog_from_before_moves_is_looked_at_too(fleet):
    with fleet.admin() as catalog:
        catalog.execute("ALTER TABLE shardkit_catalog.moves RENAME TO moves_not_yet")
        try:
            assert found(fleet, "moves", "schemas") == []
            assert take_pulse(fleet.settings()).moves == ()
        finally:
            catalog.execute("ALTER TABLE shardkit_catalog.moves_not_yet RENAME TO moves")


def test_a_program_that_hangs_has_an_old_map(fleet, eventually):
    settings = {"application_name": "a web"}
    with ShardKit(settings=fleet.settings(poll_interval_s=60.0, **settings)) as kit:
        names = "SELECT application_name FROM pg_stat_activity WHERE application_name LIKE 'a web%%'"
        with fleet.admin() as catalog:
            said = f"a web map={kit.map.version} budget=30"
            eventually(lambda: (said,) in catalog.execute(names).fetchall())
            hung = subprocess.Popen(
                [sys.executable, "-c", HANGS, fleet.catalog_url],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                env=environment(PYTHONPATH=os.pathsep.join(sys.path)),
            )  # fmt: skip
            try:
                assert hung.stdout.readline() == "up\n"
                eventually(lambda: "a worker" in {program.name for program in diagnose(fleet.settings()).facts.programs})
                assert found(fleet, "programs") == []
                hung.send_signal(signal.SIGSTOP)
                changes.pin(catalog, "somebody", 1)
                newest = f"a web map={load_map(catalog).version} budget=30"
                eventually(lambda: (newest,) in catalog.execute(names).fetchall())  # the one that does not hang has heard of it
                text = only(found(fleet, "programs", settings={"poll_interval_s": 0.5}))
                assert f"has map version {kit.map.version - 1}" in text or f"and {kit.map.version} is the newest" in text
            finally:
                hung.send_signal(signal.SIGCONT)
                hung.communicate()


def test_a_catalog_of_an_older_release(fleet):
    with fleet.admin() as catalog:
        (newest,) = catalog.execute("SELECT version_num FROM shardkit_catalog.alembic_version").fetchone()
        catalog.execute("UPDATE shardkit_catalog.alembic_version SET version_num = '0001'")
        try:
            assert only(found(fleet, "catalog")) == f"its tables are at revision 0001, and this release has {newest}"
        finally:
            catalog.execute("UPDATE shardkit_catalog.alembic_version SET version_num = %s", (newest,))


def test_what_the_command_prints(fleet, tmp_path):
    config = settings_file(tmp_path / "shardkit.toml", fleet)
    arguments = ("doctor", "--config", config, "--skip", "standby", "--skip", "durability")
    sound = run(*arguments)
    assert sound.stdout == ""
    assert "21 checks: nothing found" in sound.stderr
    with fleet.admin("pg2") as connection:
        connection.execute("CREATE SCHEMA s0777_e1")
    try:
        report = json.loads(run(*arguments, "--json", code=3).stdout)
        assert [(one["check"], one["where"], one["severity"]) for one in report["findings"]] == [("schemas", "pg2", "risk")]
        assert len(report["checks"]) == 21
        shown = run(*arguments, code=3)
        assert shown.stdout.startswith("risk     pg2: s0777_e1 is in no map")
        assert "0 problems, 1 risks" in shown.stderr
    finally:
        with fleet.admin("pg2") as connection:
            connection.execute("DROP SCHEMA s0777_e1")
    assert "no check is called nonsense" in refused("doctor", "--config", config, "--only", "nonsense")
