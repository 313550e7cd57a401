"""A server that stops is a typed error with its outcome, for its own tenants only, and comes back by itself."""

from __future__ import annotations

import sys
import threading
import traceback
from pathlib import Path

import pytest
from sqlalchemy import func, select, text

from shardkit import Outcome, ShardKit, run_local
from shardkit.errors import CommitUnknownError, ServerDownError

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))

from fleet import Order, fleet_on

COUNT = select(func.count()).select_from(Order)


@pytest.fixture(scope="module")
def cluster():
    with run_local(servers=2, redis=False, fast=True) as cluster:  # with passwords
        yield cluster


@pytest.fixture(scope="module")
def fleet(cluster):
    with fleet_on(cluster) as fleet:
        yield fleet


def tenant_on(kit, server):
    return next(name for n in range(1000) if kit.locate(name := f"t{n}").server == server)


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_stopped_server_hurts_its_own_tenants_only(cluster, fleet, mode, caplog):
    with ShardKit(settings=fleet.settings(servers=fleet.servers)) as kit:  # the catalog is on pg1
        there, here = tenant_on(kit, "pg2"), tenant_on(kit, "pg1")
        for name in (there, here):
            with kit.begin(name) as s:
                s.add(Order(note=f"before {mode}"))
        with pytest.raises(ServerDownError) as middle, kit.session(there) as s:
            s.add(Order(note=f"lost {mode}"))
            s.flush()
            cluster.stop_server("pg2", mode=mode)
            s.scalar(COUNT)
        caught = [middle.value]
        try:
            for ask in (kit.session, kit.read):
                with pytest.raises(ServerDownError, match="'pg2'") as first, ask(there) as s:
                    s.scalar(COUNT)
                caught.append(first.value)
            with kit.session(here) as s:
                assert s.scalar(COUNT) >= 1
            with pytest.raises(ServerDownError):
                with kit.session(there) as s:
                    s.execute(text("SELECT 1"))
        finally:
            cluster.start_server("pg2")
        with kit.session(there) as s:
            assert s.scalar(COUNT.where(Order.note == f"before {mode}")) == 1
            assert s.scalar(COUNT.where(Order.note == f"lost {mode}")) == 0
        for error in caught:
            assert (error.outcome, error.retryable) == (Outcome.NOT_DONE, True)
            shown = "".join(traceback.format_exception(error)) + caplog.text
            passwords = [url.partition("://")[2].partition("@")[0].partition(":")[2] for url in fleet.servers.values()]
            assert all(passwords)
            assert not any(password in shown for password in passwords)


def test_a_restart_between_two_uses_is_not_seen(cluster, fleet):
    with ShardKit(settings=fleet.settings(servers=fleet.servers)) as kit:
        name = tenant_on(kit, "pg2")
        with kit.begin(name) as s:
            s.add(Order(note="before the restart"))
        cluster.stop_server("pg2")
        cluster.start_server("pg2")
        with kit.begin(name) as s:
            s.add(Order(note="after the restart"))
        cluster.stop_server("pg2")
        cluster.start_server("pg2")
        with kit.read(name) as s:
            assert set(s.scalars(select(Order.note))) >= {"before the restart", "after the restart"}


def test_run_waits_for_a_server_that_restarts(cluster, fleet, eventually):
    with ShardKit(settings=fleet.settings(servers=fleet.servers)) as kit:
        name = tenant_on(kit, "pg2")
        calls = []

        def work(s):
            calls.append(1)
            s.add(Order(note="run"))
            s.flush()
            if len(calls) == 1:
                cluster.kill_server("pg2")
            return s.scalar(COUNT.where(Order.note == "run"))

        def restart():
            eventually(lambda: calls and cluster.pid("pg2") is None)
            cluster.start_server("pg2")

        thread = threading.Thread(target=restart)
        thread.start()
        try:
            assert kit.run(name, work) == 1
            assert len(calls) > 1
        finally:
            thread.join()


@pytest.fixture
def lazy_writer(fleet):
    """The log of pg2 reaches the disk with a COMMIT, not sooner: what is open when it is killed has left no trace."""
    with fleet.admin("pg2") as admin:
        admin.execute("ALTER SYSTEM SET wal_writer_delay = '10s'")
        admin.execute("SELECT pg_reload_conf()")
    yield
    with fleet.admin("pg2") as admin:
        admin.execute("ALTER SYSTEM RESET wal_writer_delay")
        admin.execute("SELECT pg_reload_conf()")


def crash_before_commit(cluster, fleet, note, *, and_then=lambda _xid: None):
    """A unit of work whose server dies of a crash, and is back, when its COMMIT is sent for the first time."""
    runs = []

    def work(s):
        s.add_all([Order(note=note), Order(note=f"{note} too")])
        s.flush()
        runs.append(1)
        if len(runs) == 1:
            with fleet.admin("pg2") as admin:
                (xid,) = admin.execute(
                    "SELECT backend_xid::text FROM pg_stat_activity WHERE backend_xid IS NOT NULL"
                ).fetchone()
            cluster.kill_server("pg2")
            cluster.start_server("pg2")
            and_then(xid)
        return len(runs)

    return work


def test_a_transaction_that_a_crash_took_is_not_done_and_is_run_again(cluster, fleet, lazy_writer):
    with ShardKit(settings=fleet.settings(servers=fleet.servers)) as kit:
        name = tenant_on(kit, "pg2")
        with kit.begin(name) as s:
            s.add(Order(note="before the crash"))
        assert kit.run(name, crash_before_commit(cluster, fleet, "taken")) == 2
        with kit.session(name) as s:
            assert s.scalar(COUNT.where(Order.note == "taken")) == 1


def test_an_id_that_was_given_again_after_a_crash_says_nothing(cluster, fleet, lazy_writer):
    def same_id(xid):
        with fleet.admin("pg2") as admin:
            admin.execute("CREATE TABLE public.of_another AS SELECT pg_current_xact_id()::text AS xid")
            assert admin.execute("SELECT xid FROM public.of_another").fetchone() == (xid,)
            admin.execute("DROP TABLE public.of_another")

    with ShardKit(settings=fleet.settings(servers=fleet.servers)) as kit:
        name = tenant_on(kit, "pg2")
        with kit.begin(name) as s:
            s.add(Order(note="before another's"))
        with pytest.raises(CommitUnknownError):
            kit.run(name, crash_before_commit(cluster, fleet, "another's", and_then=same_id))
        with kit.session(name) as s:
            assert s.scalar(COUNT.where(Order.note == "another's")) == 0
