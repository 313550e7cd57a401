"""Threads, tasks and forks share a kit and never mix their tenants."""

from __future__ import annotations

import asyncio
import contextvars
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fleet import Order
from sqlalchemy import func, select, text

from shardkit import AsyncShardKit, ShardKit
from shardkit.errors import NoTenantError, TenantLockedError

ROOT = Path(__file__).parents[2]
OWNERS = text("SELECT DISTINCT tenant_id FROM orders")


def test_sixteen_threads_and_fifty_tenants_never_mix(fleet):
    names = [f"thread tenant {number}" for number in range(50)]
    with ShardKit(settings=fleet.settings(pool_size=4, pool_timeout_s=60.0)) as kit:

        def work(thread):
            for number in range(25):
                name = names[(thread * 7 + number) % len(names)]
                if number % 2:
                    with kit.begin(name) as s:
                        s.add(Order(note=f"{thread} {number}"))
                        s.flush()
                        assert s.execute(OWNERS).all() == [(name,)]
                else:
                    with kit.tenant(name), kit.read() as s:
                        assert {row.tenant_id for row in s.scalars(select(Order))} <= {name}
                        assert {row[0] for row in s.execute(OWNERS)} <= {name}

        with ThreadPoolExecutor(16) as pool:
            for done in [pool.submit(work, thread) for thread in range(16)]:
                done.result()
        counts = []
        for name in names:
            with kit.read(name) as s:
                counts.append(s.scalar(select(func.count()).select_from(Order)))
    assert sum(counts) == 16 * 12


def test_a_hundred_tasks_never_mix(fleet):
    async def work(kit, name):
        with kit.tenant(name, lock=True):
            async with kit.begin() as s:
                s.add(Order(note="task"))
            await asyncio.sleep(0)
            async with kit.read() as s:
                assert (await s.execute(OWNERS)).all() == [(name,)]
            assert kit.current_tenant == name
            assert await asyncio.to_thread(lambda: kit.current_tenant) == name

    async def main():
        async with AsyncShardKit(settings=fleet.settings(pool_size=4, pool_timeout_s=60.0)) as kit:
            async with asyncio.TaskGroup() as group:
                for number in range(100):
                    group.create_task(work(kit, f"task tenant {number}"))
            await asyncio.gather(*(work(kit, f"gathered tenant {number}") for number in range(100)))
            with pytest.raises(NoTenantError):
                kit.session()

    asyncio.run(main())


def test_a_cancelled_statement_leaves_the_pool_in_order(fleet, tenant, eventually):
    async def main():
        async with AsyncShardKit(settings=fleet.settings(pool_size=1)) as kit:
            for opener in (kit.session, kit.read):

                async def sleep(opener=opener):
                    async with opener(tenant) as s:
                        await s.execute(text("SELECT pg_sleep(600), :mark"), {"mark": "cancel me"})

                task = asyncio.create_task(sleep())
                with fleet.admin(kit.locate(tenant).server) as admin:
                    busy = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
                    while admin.execute(busy).fetchone() != (1,):
                        await asyncio.sleep(0.01)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                async with kit.begin(tenant) as s:
                    assert await s.scalar(text("SELECT current_setting('shardkit.tenant')")) == tenant

    asyncio.run(asyncio.wait_for(main(), 200))


def test_a_block_is_nested_locked_and_not_inherited_by_threads(fleet):
    with ShardKit(settings=fleet.settings()) as kit:
        with kit.tenant("outer"):
            with kit.tenant("inner"):
                assert kit.session().tenant == "inner"
                assert kit.session("explicit").tenant == "explicit"
            assert kit.current_tenant == "outer"
            with ThreadPoolExecutor(1) as pool:
                assert pool.submit(lambda: kit.current_tenant).result() is None
                with pytest.raises(NoTenantError):
                    pool.submit(kit.session).result()
        with kit.tenant("locked", lock=True):
            for ask in (kit.session, kit.begin, kit.read, lambda name: kit.tenant(name).__enter__()):
                with pytest.raises(TenantLockedError):
                    ask("another")
            with kit.tenant("locked"):  # the same one is fine, and stays locked
                assert kit.session("locked").tenant == "locked"
                with pytest.raises(TenantLockedError):
                    kit.session("another")
        assert kit.current_tenant is None
        with pytest.raises(ZeroDivisionError), kit.tenant("failing"):
            1 / 0  # noqa: B018  it raises
        assert kit.current_tenant is None


def test_the_tenant_is_the_same_before_and_after_an_executor_and_inside_only_if_the_context_goes_along(fleet):
    async def main():
        async with AsyncShardKit(settings=fleet.settings()) as kit:
            loop = asyncio.get_running_loop()

            async def work(name):
                with kit.tenant(name):
                    assert await loop.run_in_executor(None, contextvars.copy_context().run, lambda: kit.current_tenant) == name
                    with pytest.raises(NoTenantError):
                        await loop.run_in_executor(None, kit.session)
                    assert kit.current_tenant == name

            await asyncio.gather(*(work(f"executor tenant {number}") for number in range(50)))

    asyncio.run(main())


def test_two_kits_have_tenants_of_their_own(fleet):
    with ShardKit(settings=fleet.settings()) as one, ShardKit(settings=fleet.settings()) as other:
        with one.tenant("acme"):
            assert other.current_tenant is None


def test_idle_threads_hold_no_connection(fleet):
    with ShardKit(settings=fleet.settings(pool_size=1)) as kit:
        ready, done = threading.Barrier(9), threading.Event()

        def work():
            with kit.session("idle") as s:
                s.scalar(text("SELECT 1"))
                s.commit()
                ready.wait(120)
                done.wait(120)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        ready.wait(120)  # all eight got through a budget of one
        done.set()
        for thread in threads:
            thread.join()


def test_forks_of_a_preloaded_program_work_and_so_does_the_parent(fleet):
    code = """
        import os, sys, warnings
        sys.path.insert(0, "tests/integration")
        from fleet import Order
        from sqlalchemy import select, func, text
        from shardkit import ShardKit
        kit = ShardKit(catalog_url=sys.argv[1], pool_size=1, poll_interval_s=0.1, connect_timeout_s=60, pool_timeout_s=60)
        pid = text("SELECT pg_backend_pid()")
        def backends(shards=range(16)):
            found = set()
            for shard in shards:
                with kit.shard(shard).session() as s:
                    found.add((s.route.server, s.scalar(pid)))
            return found
        mine = backends([kit.map.shards_on(name)[0] for name in kit.map.servers])
        assert len(mine) == 2, mine
        children = []
        for number in range(3):
            child = os.fork()
            if child == 0:
                warnings.simplefilter("ignore", ResourceWarning)  # the parent's sockets, which are not ours to close
                try:
                    theirs = backends()
                    assert len(theirs) == 2, theirs
                    assert not theirs & mine, (theirs, mine)
                    with kit.begin("forked") as s:
                        s.add(Order(note=f"child {number}"))
                    assert kit._router.watch._thread.is_alive()
                    kit.refresh()
                    with kit.shard(kit.map.shards_on("pg1")[0]).session() as one:
                        one.scalar(pid)
                        try:
                            with kit.shard(kit.map.shards_on("pg1")[1]).session() as two:
                                kit._router.engines.pools()["pg1"]._timeout = 0.1
                                two.scalar(pid)
                        except Exception as exc:
                            assert type(exc).__name__ == "PoolTimeoutError", repr(exc)
                        else:
                            raise AssertionError("the child's budget is larger than one")
                    os._exit(0)
                except BaseException:
                    import traceback
                    traceback.print_exc()
                    sys.stderr.flush()
                    os._exit(1)
            children.append(child)
        assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
        assert backends() == mine
        with kit.read("forked") as s:
            assert s.scalar(select(func.count()).select_from(Order)) == 3
        kit.close()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), fleet.catalog_url],
        cwd=ROOT, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
