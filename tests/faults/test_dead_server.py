"""A server that stops is a typed error with its outcome, for its own tenants only, and comes back by itself."""

from __future__ import annotations

import sys
import threading
import traceback
from pathlib import Path

import pytest
from sqlalchemy import func, select, text

from shardkit import Outcome, ShardKit, run_local
from shardkit.errors import ServerDownError

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
