"""Every call ends at its deadline, whatever the other side does (law 4)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time

import psycopg
import pytest
from fleet import Order
from freezer import frozen
from sqlalchemy import select, text

from shardkit import AsyncShardKit, ShardKit
from shardkit.errors import CommitUnknownError, DeadlineError, Outcome, PoolTimeoutError, ServerDownError

FAR_TOO_LONG_S = 60.0  # every other limit is 120 s; a deadline that does nothing is seen, and a machine may stall


@contextlib.contextmanager
def ends_in_time():
    start = time.monotonic()
    yield
    assert time.monotonic() - start < FAR_TOO_LONG_S


@contextlib.contextmanager
def stopped(pid):
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_packets_dropped_before_the_query_is_sent(kit, behind):
    tenant = behind.tenant_on("pg1")
    with kit.session(tenant) as s:
        s.execute(text("SELECT 1"))
        behind.proxies["pg1"].mode = "swallow"
        with ends_in_time(), kit.deadline(0.3), pytest.raises(DeadlineError) as caught:
            s.execute(text("SELECT 2"))
    assert caught.value.outcome is Outcome.NOT_DONE
    assert caught.value.retryable


def test_a_query_that_takes_too_long(kit, behind):
    tenant = behind.tenant_on("pg1")
    with ends_in_time(), kit.session(tenant) as s, kit.deadline(0.3), pytest.raises(DeadlineError):
        s.execute(text("SELECT pg_sleep(600)"))
    with kit.session(tenant) as s:
        assert s.scalar(text("SELECT 1")) == 1


def test_a_stopped_backend(kit, behind):
    with kit.session(behind.tenant_on("pg1")) as s:
        pid = s.scalar(text("SELECT pg_backend_pid()"))
        with stopped(pid), ends_in_time(), kit.deadline(0.3), pytest.raises(DeadlineError):
            s.execute(text("SELECT 1"))


def test_a_stopped_server_takes_no_new_connection(local_cluster, behind):
    name = local_cluster.servers[0].name
    with ShardKit(settings=behind.settings()) as kit, stopped(local_cluster.pid(name)), ends_in_time():
        with kit.deadline(0.3), kit.session(behind.tenant_on("pg1")) as s, pytest.raises((ServerDownError, DeadlineError)):
            s.execute(text("SELECT 1"))


def test_a_frozen_server_ends_every_kind_of_call_in_time(kit, behind, local_cluster):
    """Not one of its processes runs, and the kernel still takes packets and connections for them."""
    tenant, other = behind.tenant_on("pg1"), behind.tenant_on("pg2")
    with kit.session(tenant) as open_one, kit.session(tenant) as writing:
        open_one.execute(text("SELECT 1"))
        writing.add_all([Order(note="frozen one"), Order(note="frozen two")])
        writing.flush()
        with frozen(local_cluster.pid(local_cluster.servers[0].name)):
            with ends_in_time(), kit.deadline(0.3), pytest.raises(DeadlineError) as caught:
                open_one.execute(text("SELECT 1"))
            assert caught.value.outcome is Outcome.NOT_DONE
            with ends_in_time(), kit.deadline(0.3), pytest.raises(CommitUnknownError):
                writing.commit()
            with ends_in_time(), kit.session(other) as s:  # the healthy server; the catalog is on the frozen one
                assert s.scalar(text("SELECT 1")) == 1
            with ends_in_time(), kit.deadline(0.3), kit.session(tenant) as s, pytest.raises((ServerDownError, DeadlineError)):
                s.execute(text("SELECT 1"))  # a connection is made
    with kit.session(tenant) as s:
        assert s.scalar(text("SELECT 1")) == 1


def test_async_calls_to_a_frozen_server_end_too(behind, local_cluster):
    async def main():
        async with AsyncShardKit(settings=behind.settings()) as kit:
            tenant, other = behind.tenant_on("pg1"), behind.tenant_on("pg2")
            async with kit.session(tenant) as s, kit.session(tenant) as writing:
                await s.execute(text("SELECT 1"))
                writing.add_all([Order(note="async frozen one"), Order(note="async frozen two")])
                await writing.flush()
                with frozen(local_cluster.pid(local_cluster.servers[0].name)):
                    with ends_in_time(), kit.deadline(0.3), pytest.raises(DeadlineError):
                        await s.execute(text("SELECT 1"))
                    with ends_in_time(), kit.deadline(0.3), pytest.raises(CommitUnknownError):
                        await writing.commit()
                    async with kit.session(other) as healthy:
                        assert await healthy.scalar(text("SELECT 1")) == 1
                    with ends_in_time(), kit.deadline(0.3), pytest.raises((ServerDownError, DeadlineError)):
                        async with kit.session(tenant) as fresh:
                            await fresh.execute(text("SELECT 1"))

    asyncio.run(main())


def test_what_a_frozen_server_has_committed_is_found_out_when_it_goes_on(behind, local_cluster, fleet, eventually):
    """COMMIT is on its way when the server freezes: the program is told *unknown*, and afterwards it is one or the other."""
    tenant, note = behind.tenant_on("pg1"), "thawed"
    with ShardKit(settings=behind.settings(pool_size=2)) as kit:
        with kit.session(tenant) as s:
            s.add_all([Order(note=note), Order(note=f"{note} 2")])
            pid = s.scalar(text("SELECT pg_backend_pid()"))
            with frozen(local_cluster.pid(local_cluster.servers[0].name)), ends_in_time(), kit.deadline(0.3):
                with pytest.raises(CommitUnknownError) as caught:
                    s.commit()
            assert not caught.value.retryable
        with fleet.admin("pg1") as admin:  # it does what it was sent, and then finds that nobody is there
            eventually(lambda: admin.execute("SELECT FROM pg_stat_activity WHERE pid = %s", (pid,)).fetchone() is None)
        assert fleet.count(kit, tenant, f"note = '{note}'") == fleet.count(kit, tenant, f"note = '{note} 2'")


def test_without_a_block_the_setting_is_the_limit(behind):
    with ShardKit(settings=behind.settings(call_timeout_s=2.0)) as kit, kit.session(behind.tenant_on("pg1")) as s:
        with ends_in_time(), pytest.raises(DeadlineError):
            s.execute(text("SELECT pg_sleep(600)"))


def test_an_inner_deadline_cannot_outlast_the_outer_one(kit, behind):
    with kit.session(behind.tenant_on("pg1")) as s, ends_in_time(), kit.deadline(0.3), kit.deadline(600):
        with pytest.raises(DeadlineError):
            s.execute(text("SELECT pg_sleep(600)"))


def test_the_deadline_hits_a_commit(kit, behind):
    tenant = behind.tenant_on("pg1")
    with pytest.raises(CommitUnknownError) as caught, ends_in_time(), kit.begin(tenant) as s:
        s.add_all([Order(note="deadline one"), Order(note="deadline two")])
        s.flush()
        behind.proxies["pg1"].mode = "swallow"
        stack = contextlib.ExitStack()
        stack.enter_context(kit.deadline(0.3))
    stack.close()
    assert caught.value.outcome is Outcome.UNKNOWN
    assert not caught.value.retryable


def test_waiting_for_a_connection_ends_too(kit, behind):
    tenant = behind.tenant_on("pg1")
    with kit.session(tenant) as one, kit.session(tenant) as two:
        one.execute(text("SELECT 1"))
        two.execute(text("SELECT 1"))
        with ends_in_time(), kit.deadline(0.2), kit.session(tenant) as three, pytest.raises(PoolTimeoutError):
            three.execute(text("SELECT 1"))


def test_a_queue_that_is_full_refuses_at_once(behind, eventually):
    tenant = behind.tenant_on("pg1")
    with ShardKit(settings=behind.settings(pool_size=1, pool_queue=1, pool_timeout_s=120.0)) as kit:
        with kit.session(tenant) as holder:
            holder.execute(text("SELECT 1"))

            def wait_in_line():
                with kit.session(tenant) as s:
                    s.execute(text("SELECT 1"))

            waiter = threading.Thread(target=wait_in_line)
            waiter.start()
            pool = kit._router.engines.pools()["pg1"]
            eventually(lambda: pool.waiting == 1)
            with ends_in_time(), kit.session(tenant) as s, pytest.raises(PoolTimeoutError, match="others wait"):
                s.execute(text("SELECT 1"))
        waiter.join(timeout=100)
        assert not waiter.is_alive()


def test_the_budget_counts_all_pools_of_the_process(behind):
    tenant = behind.tenant_on("pg1")
    settings = behind.settings(pool_size=2, connection_budget=3)
    with ShardKit(settings=settings) as one, ShardKit(settings=settings) as other, contextlib.ExitStack() as stack:
        held = 0
        with pytest.raises(PoolTimeoutError, match="budget"):
            for kit in (one, one, other, other):
                stack.enter_context(kit.session(tenant)).execute(text("SELECT 1"))
                held += 1
        assert held <= 3


def test_one_servers_trouble_is_not_another_servers(kit, behind):
    behind.proxies["pg1"].mode = "swallow"
    stuck = [threading.Thread(target=_run_into, args=(kit, behind.tenant_on("pg1"))) for _ in range(4)]
    for thread in stuck:
        thread.start()
    tenant = behind.tenant_on("pg2")
    with ends_in_time():
        for _ in range(50):
            with kit.read(tenant) as s:
                s.scalars(select(Order)).all()
    for thread in stuck:
        thread.join(timeout=100)
        assert not thread.is_alive()


def _run_into(kit, tenant):
    with contextlib.suppress(DeadlineError, ServerDownError, PoolTimeoutError), kit.deadline(1.0), kit.session(tenant) as s:
        s.execute(text("SELECT 1"))


def test_async_calls_end_too(behind):
    async def main():
        async with AsyncShardKit(settings=behind.settings()) as kit:
            tenant = behind.tenant_on("pg1")
            async with kit.session(tenant) as s:
                await s.execute(text("SELECT 1"))
                behind.proxies["pg1"].mode = "swallow"
                with ends_in_time(), kit.deadline(0.3), pytest.raises(DeadlineError):
                    await s.execute(text("SELECT 2"))
            behind.proxies["pg1"].mode = "pass"
            async with kit.session(tenant) as s:
                pid = await s.scalar(text("SELECT pg_backend_pid()"))
                with stopped(pid), ends_in_time(), kit.deadline(0.3), pytest.raises(DeadlineError):
                    await s.execute(text("SELECT 1"))

    asyncio.run(main())


def test_a_cancelled_task_does_not_linger(behind):
    """psycopg alone asks the server to cancel and waits for that: up to 11 s when packets are dropped."""

    async def main():
        async with AsyncShardKit(settings=behind.settings()) as kit:
            tenant = behind.tenant_on("pg1")
            async with kit.session(tenant) as s:
                await s.execute(text("SELECT 1"))
                behind.proxies["pg1"].mode, made = "swallow", behind.proxies["pg1"].accepted
                with ends_in_time():
                    with pytest.raises(TimeoutError):
                        async with asyncio.timeout(0.3):
                            await s.execute(text("SELECT 2"))
                    await s.close()
                assert behind.proxies["pg1"].accepted == made, "a cancel request makes a connection, and waits for an answer"
            behind.proxies["pg1"].mode = "pass"
            async with kit.session(tenant) as s:
                assert await s.scalar(text("SELECT 1")) == 1

    asyncio.run(main())


def test_what_the_server_ran_for_a_dropped_client_is_ended(kit, behind, fleet, eventually):
    with kit.session(behind.tenant_on("pg1")) as s:
        pid = s.scalar(text("SELECT pg_backend_pid()"))
        with kit.deadline(0.2), pytest.raises(DeadlineError):
            s.execute(text("SELECT pg_sleep(600)"))
    with psycopg.connect(fleet.servers["pg1"], autocommit=True) as admin:
        eventually(lambda: admin.execute("SELECT FROM pg_stat_activity WHERE pid = %s", (pid,)).fetchone() is None)
