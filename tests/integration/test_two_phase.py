"""A transaction over several tenants is done everywhere or nowhere, whoever dies at whatever step."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from uuid import uuid4

import pytest
from fleet import Order, fleet_on
from sqlalchemy import func, select, update

from shardkit import ShardKit, run_local
from shardkit._sync import transaction as sync_transaction
from shardkit.catalog import resolver
from shardkit.catalog.decisions import Decisions
from shardkit.catalog.overview import overview
from shardkit.catalog.resolver import in_doubt, resolve
from shardkit.cli import status
from shardkit.core.names import APP_ROLE, gid, parse_gid
from shardkit.errors import NameRejectedError, NoSnapshotError, TenantMismatchError, TwoPhaseDisabledError, TwoPhaseError

HERE = Path(__file__).parent
STEPS = ["prepare 0", "prepare 1", "prepare 2", "decide", "decided", "commit 0", "commit 1", "commit 2", "finish"]


@pytest.fixture
def apart(fleet, tenant):
    """Three tenants: two in shards of different servers, one beside the first."""
    names = (f"{tenant}-{n}" for n in itertools.count())
    first = next(names)
    home = fleet.map.locate(first)
    other = next(name for name in names if fleet.map.locate(name).server != home.server)
    beside = next(name for name in names if fleet.map.locate(name).shard == home.shard)
    return first, other, beside


def counts(fleet, kit, tenants, note):
    return [fleet.count(kit, tenant, f"note = '{note}'") for tenant in tenants]


def settled(fleet):
    """Whether nothing is in doubt, after resolving once more."""
    resolve(fleet.settings(), fleet.map)
    return not in_doubt(fleet.settings(), fleet.map)


@pytest.mark.parametrize("step", STEPS)
def test_a_coordinator_killed_at_any_step_leaves_all_or_nothing(fleet, kit, apart, eventually, step):
    decided = STEPS.index(step) >= STEPS.index("decided")
    killed(fleet, step, *apart, patience_s=120 if decided else 1)  # it must not be late itself, nor be waited for in vain
    eventually(lambda: settled(fleet))
    assert counts(fleet, kit, apart, step) == [int(decided)] * 3
    decisions = Decisions(fleet.settings())
    eventually(lambda: settled(fleet) and not decisions.unfinished())
    decisions.close()


@pytest.mark.parametrize("others", [slice(1), slice(3)], ids=["one tenant", "over servers"])
def test_what_it_wrote_is_seen_in_the_block_it_stands_in(kit, apart, others):
    with kit.tenant(apart[0]):
        with kit.transaction(*apart[others]) as tx:
            for name in apart[others]:
                tx[name].add(Order(note="trail"))
            assert not kit.wrote
        assert kit.wrote


def killed(fleet, step, *tenants, patience_s):
    arguments = [sys.executable, str(HERE / "coordinator.py"), fleet.catalog_url, str(patience_s), step, step, *tenants]
    path = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    died = subprocess.run(
        arguments, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=120, check=False
    )
    assert died.returncode == -signal.SIGKILL, died.stderr


def test_status_shows_what_a_dead_coordinator_left_and_a_program_that_runs_ends_it(
    fleet, kit, apart, eventually, monkeypatch, capsys
):
    killed(fleet, "commit 1", *apart, patience_s=3)
    found = overview(fleet.settings())
    assert {(one.outcome, one.part.locks > 0) for one in found.in_doubt} == {("commit", True)}
    assert len(found.in_doubt) == 2
    told = status.report(found)["in_doubt"]
    assert {(one["outcome"], one["server"]) for one in told} == {("commit", one.server) for one in found.in_doubt}
    status.show(found)
    assert str(found.in_doubt[0].txn) in capsys.readouterr().out
    eventually(lambda: not overview(fleet.settings()).healthy)  # it may wait for its patience, no longer
    monkeypatch.setattr(resolver, "INTERVAL_S", 0.05)
    kit.transaction(*apart[:2])  # the first one in this process begins the background resolver
    eventually(lambda: not overview(fleet.settings()).in_doubt)
    assert overview(fleet.settings()).healthy
    assert counts(fleet, kit, apart, "commit 1") == [1] * 3


def test_all_is_written_and_nothing_left_behind(fleet, kit, apart):
    with kit.transaction(*apart, patience_s=120) as tx:
        for tenant in apart:
            tx[tenant].add(Order(note="all"))
    assert counts(fleet, kit, apart, "all") == [1, 1, 1]
    assert in_doubt(fleet.settings(), fleet.map) == []
    with pytest.raises(TenantMismatchError):
        kit.transaction("a").session("b")


def test_an_error_inside_the_block_writes_nothing(fleet, kit, apart):
    with pytest.raises(ZeroDivisionError), kit.transaction(*apart, patience_s=120) as tx:
        tx[apart[0]].add(Order(note="none"))
        tx[apart[0]].flush()
        raise ZeroDivisionError
    assert counts(fleet, kit, apart, "none") == [0, 0, 0]


def test_one_writer_commits_in_one_phase(fleet, kit, apart, monkeypatch):
    monkeypatch.setattr(sync_transaction, "reached", lambda step: pytest.fail(f"two phases: {step}"))
    with kit.transaction(*apart, patience_s=120) as tx:
        tx[apart[1]].add(Order(note="one"))
        assert tx[apart[0]].scalar(select(func.count()).select_from(Order)) is not None
    assert counts(fleet, kit, apart, "one") == [0, 1, 0]


def test_a_part_that_cannot_be_prepared_undoes_the_others(fleet, kit, apart):
    with fleet.admin(kit.locate(apart[1]).server) as connection:
        schema = kit.locate(apart[1]).schema
        connection.execute(
            f"CREATE FUNCTION {schema}.no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not this one'; END $$;"
            f"CREATE CONSTRAINT TRIGGER no AFTER INSERT ON {schema}.orders DEFERRABLE INITIALLY DEFERRED"
            f" FOR EACH ROW EXECUTE FUNCTION {schema}.no()"
        )
        try:
            with pytest.raises(TwoPhaseError, match="not this one"), kit.transaction(*apart, patience_s=120) as tx:
                for tenant in apart:
                    tx[tenant].add(Order(note="refused"))
        finally:
            connection.execute(f"DROP TRIGGER no ON {schema}.orders")
    assert counts(fleet, kit, apart, "refused") == [0, 0, 0]
    assert in_doubt(fleet.settings(), fleet.map) == []


def test_a_coordinator_slower_than_its_patience_is_rolled_back_and_told(fleet, kit, apart, monkeypatch, eventually):
    def slow(step):
        if step == "decide":
            assert [d.outcome for d in in_doubt(fleet.settings(), fleet.map)] == [None] * 3
            eventually(lambda: settled(fleet))

    monkeypatch.setattr(sync_transaction, "reached", slow)
    with pytest.raises(TwoPhaseError, match="longer than"), kit.transaction(*apart, patience_s=0) as tx:
        for tenant in apart:
            tx[tenant].add(Order(note="slow"))
    assert counts(fleet, kit, apart, "slow") == [0, 0, 0]


def test_a_patient_resolver_leaves_what_is_under_way(fleet, kit, apart, monkeypatch):
    seen = []

    def look(step):
        if step == "decide":
            ended = resolve(fleet.settings(), fleet.map)
            seen.append((ended, [waiting.part.locks > 0 for waiting in in_doubt(fleet.settings(), fleet.map)]))

    monkeypatch.setattr(sync_transaction, "reached", look)
    with kit.transaction(*apart, patience_s=120) as tx:
        for tenant in apart:
            tx[tenant].add(Order(note="patient"))
    assert seen == [([], [True] * 3)]
    assert counts(fleet, kit, apart, "patient") == [1, 1, 1]


def test_a_server_lost_after_the_decision_holds_nobody_else_back(fleet, kit, apart, monkeypatch, eventually):
    first, other, beside = apart

    def lose(step):
        if step == "commit 0":
            with fleet.admin(kit.locate(first).server) as connection:
                connection.execute(
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE query LIKE 'PREPARE TRANSACTION%'"
                    " AND datname = current_database() AND pid <> pg_backend_pid()"
                )

    monkeypatch.setattr(sync_transaction, "reached", lose)
    monkeypatch.setattr(resolver.BackgroundResolver, "start", lambda _: None)
    with kit.transaction(first, other, beside) as tx:
        for tenant in apart:
            tx[tenant].add(Order(note="lost"))
    assert counts(fleet, kit, [other], "lost") == [1]
    assert {(part.server, part.outcome) for part in in_doubt(fleet.settings(), fleet.map)} == {
        (kit.locate(first).server, "commit")
    }
    eventually(lambda: settled(fleet))
    assert counts(fleet, kit, apart, "lost") == [1, 1, 1]


def test_a_part_that_may_not_be_ended_holds_nobody_else_back(fleet, caplog):
    """Another role has prepared it: the server refuses, now and whenever it is asked again."""
    cluster, servers = fleet.map.cluster_id.hex, list(fleet.map.servers)
    names = {server: gid(cluster, uuid4().hex, 0, 0) for server in ("foreign", *servers)}
    parts = [(servers[0], names["foreign"], "NONE"), *((server, names[server], APP_ROLE) for server in servers)]
    for server, name, role in parts:
        with fleet.admin(server) as connection:
            connection.execute(f"BEGIN; SET LOCAL ROLE {role}; SELECT pg_current_xact_id(); PREPARE TRANSACTION '{name}'")
    try:
        ended = resolve(fleet.settings(), fleet.map)
        assert {part.part.name for part in ended} == {names[server] for server in servers}
        assert f"{names['foreign']} was not ended" in caplog.text
        assert [part.part.name for part in in_doubt(fleet.settings(), fleet.map)] == [names["foreign"]]
        resolve(fleet.settings(), fleet.map)
        with contextlib.closing(Decisions(fleet.settings())) as decisions:
            left = {txn.hex for txn, _ in decisions.unfinished()}
        assert left == {parse_gid(names[part]).txn for part in ("foreign", servers[0])}  # a server that refused may have more
    finally:
        with fleet.admin(servers[0]) as connection:
            connection.execute(f"ROLLBACK PREPARED '{names['foreign']}'")
        assert settled(fleet)


def test_a_snapshot_does_not_see_half_a_transaction(fleet, kit, apart, monkeypatch):
    mine = select(func.count(Order.id)).where(Order.note == "half")
    seen = {}

    def look(step):
        if step == "commit 1":
            seen["plain"] = kit.fan_out_scalar(mine)
            with pytest.raises(NoSnapshotError):
                kit.fan_out_scalar(mine, snapshot=True, deadline_s=2.0)

    monkeypatch.setattr(sync_transaction, "reached", look)
    assert kit.fan_out_scalar(mine, snapshot=True) == 0
    with kit.transaction(*apart, patience_s=120) as tx:
        for tenant in apart:
            tx[tenant].add(Order(note="half"))
    assert seen == {"plain": 1}  # the planted violation: without a snapshot half of it shows
    assert kit.fan_out_scalar(mine, snapshot=True) == 3


def test_snapshots_keep_a_sum_that_transactions_keep(fleet, kit, apart):
    one, other, _ = apart
    for tenant in (one, other):
        with kit.begin(tenant) as s:
            s.add(Order(note="purse", amount=100))
    total = select(func.sum(Order.amount)).where(Order.note == "purse")
    stop = threading.Event()

    def carry():
        with ShardKit(settings=fleet.settings()) as mine:
            for number in itertools.count():
                if stop.wait(0.01):
                    return
                with mine.transaction(one, other, patience_s=120) as tx:
                    for tenant, amount in ((one, number), (other, -number)):
                        tx[tenant].execute(update(Order).where(Order.note == "purse").values(amount=Order.amount + amount))

    carrier = threading.Thread(target=carry)
    carrier.start()
    try:
        found = [kit.fan_out_scalar(total, snapshot=True) for _ in range(30)]
    finally:
        stop.set()
        carrier.join()
    assert found == [200] * 30


def test_where_prepared_transactions_are_not_allowed_nothing_is_written():
    with run_local(servers=1, redis=False, trust=True, fast=True) as cluster, fleet_on(cluster, shard_count=4) as fleet:
        with fleet.admin("pg1") as connection:
            connection.execute("ALTER SYSTEM SET max_prepared_transactions = 0")
        cluster.stop_server(cluster.servers[0].name)
        cluster.start_server(cluster.servers[0].name)
        with fleet.admin("pg1") as connection:
            (allowed,) = connection.execute("SELECT current_setting('max_prepared_transactions')").fetchone()
        if allowed != "0":
            pytest.skip("the local cluster sets it on its command line")
        with ShardKit(settings=fleet.settings()) as kit:
            with pytest.raises(TwoPhaseDisabledError, match="max_prepared_transactions"), kit.transaction("a", "b") as tx:
                tx["a"].add(Order(note="x"))
                tx["b"].add(Order(note="x"))
            assert kit.fan_out_scalar(select(func.count(Order.id))) == 0


def test_names_of_parts_say_whose_they_are():
    name = gid("0" * 32, "a" * 32, 3, 10)
    assert tuple(parse_gid(name)) == ("0" * 32, "a" * 32, 3, 10)
    assert parse_gid("shardkit:x:y:1:2") is None
    with pytest.raises(NameRejectedError):
        gid("'; DROP", "a" * 32, 0, 1)
