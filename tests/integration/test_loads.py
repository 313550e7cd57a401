"""Units of work are counted and told to the catalog in the background; where that fails nobody notices, and nothing is lost."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from dataclasses import replace

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from shardkit import AsyncShardKit, Settings, ShardKit
from shardkit.catalog import loads
from shardkit.core.latency import LIMITS_S
from shardkit.errors import PlacementError
from shardkit.local.databases import fresh_databases
from shardkit.move.rebalance import make_plan
from shardkit.schema.blueprint import Blueprint
from shardkit.schema.bootstrap import initialize
from tests.driverclock import driver_clock


@pytest.fixture(scope="module")
def databases(local_cluster):
    with fresh_databases(local_cluster.servers, 2) as made:
        settings = Settings(catalog_url=made.catalog_url)
        initialize(settings, servers=made.servers, shard_count=4, blueprint=Blueprint("CREATE TABLE t (id int PRIMARY KEY)"))
        yield made


@pytest.fixture
def catalog(databases):
    with psycopg.connect(databases.catalog_url, autocommit=True) as connection:
        connection.execute("TRUNCATE shardkit_catalog.loads, shardkit_catalog.latencies")
        yield connection


def kit_of(databases, **given):
    return ShardKit(settings=Settings(catalog_url=databases.catalog_url, load_interval_s=3600.0, **given))


def work(kit, tenant, times):
    for _ in range(times):
        with kit.begin(tenant) as session:
            session.execute(text("SELECT 1"))


def told(connection):
    return loads.lately(connection, tenant_type="str")


def until(condition, timeout_s=60.0):
    deadline = time.monotonic() + timeout_s
    waiting = threading.Event()
    while not condition():
        assert time.monotonic() < deadline
        waiting.wait(0.02)


def test_what_is_done_is_counted_by_tenant_and_shard(databases, catalog):
    with kit_of(databases) as kit:
        work(kit, "acme", 7)
        work(kit, "beta", 3)
        with kit.shard(2).session() as session:
            session.execute(text("SELECT 1"))
        seen = kit.load()
        assert seen.total == 11
        assert [(hot.tenant, hot.units, hot.error) for hot in seen.tenants] == [("acme", 7, 0), ("beta", 3, 0)]
        expected = {kit.locate("acme").shard: 7}
        for shard, units in ((kit.locate("beta").shard, 3), (2, 1)):
            expected[shard] = expected.get(shard, 0) + units
        assert dict(seen.shards) == expected
        assert kit._router.load.send()
        assert kit.load().total == 0
        assert not kit._router.load.send(), "there is nothing to tell"
        assert dict(told(catalog).shards) == expected
        assert [(hot.tenant, hot.shard, hot.units) for hot in told(catalog).tenants] == [
            ("acme", kit.locate("acme").shard, 7),
            ("beta", kit.locate("beta").shard, 3),
        ]


def test_threads_lose_no_count(databases):
    with kit_of(databases) as kit:
        threads = [threading.Thread(target=work, args=(kit, f"tenant{n}", 40)) for n in range(8)]
        looking = threading.Thread(target=lambda: [kit.load() for _ in range(300)])
        for thread in (*threads, looking):
            thread.start()
        for thread in (*threads, looking):
            thread.join()
        assert kit.load().total == 320
        assert {hot.units for hot in kit.load().tenants} == {40}


def test_the_thread_tells_by_itself(databases, catalog):
    with ShardKit(settings=Settings(catalog_url=databases.catalog_url, load_interval_s=0.05)) as kit:
        work(kit, "acme", 5)
        until(lambda: told(catalog).total == 5)


def test_async_sessions_count_too(databases):
    async def main():
        async with AsyncShardKit(settings=Settings(catalog_url=databases.catalog_url)) as kit:
            for _ in range(6):
                async with kit.begin("acme") as session:
                    await session.execute(text("SELECT 1"))
            return kit.load(), kit.locate("acme").shard

    seen, shard = asyncio.run(main())
    assert seen.total == 6
    assert seen.p99_s[shard] > 0


def test_a_forked_child_counts_its_own_work_only(databases):
    with kit_of(databases) as kit:
        work(kit, "acme", 3)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                work(kit, "beta", 2)
                seen = kit.load()
                alive = kit._router.load._thread.is_alive()
                os.write(writing, f"{seen.total} {seen.tenants[0].tenant} {alive}".encode())
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        assert os.read(reading, 100) == b"2 beta True"
        os.close(reading)
        os.close(writing)
        assert kit.load().total == 3


def test_nothing_is_counted_where_it_is_switched_off(databases):
    with kit_of(databases, count_loads=False) as kit:
        work(kit, "acme", 3)
        assert replace(kit.load(), window_s=0.0) == loads.Load()
        assert kit._router.load._thread is None


def test_without_a_catalog_work_goes_on_and_the_counts_are_kept(databases, catalog):
    with kit_of(databases) as kit:
        count = kit._router.load
        work(kit, "acme", 3)
        settings = count._settings
        count._settings = replace(settings, catalog_url="postgresql://nobody@127.0.0.1:1/none")
        with pytest.raises(Exception, match="does not answer"):
            count.send()
        work(kit, "beta", 2)
        with pytest.raises(Exception, match="does not answer"):
            count.send()
        assert kit.load().total == 5
        count._settings = settings
        assert count.send()
        assert [(hot.tenant, hot.units) for hot in told(catalog).tenants] == [("acme", 3), ("beta", 2)]
        assert sum(bucket.times for bucket in loads.lately_took(catalog, since_s=60).buckets()) == 2 * 5


def test_old_rows_are_forgotten_and_do_not_count(databases, catalog):
    with kit_of(databases) as kit:
        work(kit, "acme", 3)
        kit._router.load.send()
        catalog.execute("UPDATE shardkit_catalog.loads SET at = at - interval '2 hours'")
        catalog.execute("UPDATE shardkit_catalog.latencies SET at = at - interval '2 hours'")
        assert told(catalog).total == 0
        work(kit, "acme", 1)
        kit._router.load.send()
        assert catalog.execute("SELECT count(*) FROM shardkit_catalog.loads").fetchone() == (1,)
        assert catalog.execute("SELECT count(*) FROM shardkit_catalog.latencies").fetchone() == (1,)


def counted(latencies, shard):
    return sum(bucket.times for bucket in latencies.buckets() if bucket.shard == shard)


def test_the_p99_of_a_shard_is_that_of_all_programs_together(databases, catalog):
    statement = text("SELECT 1")
    with driver_clock() as clock, kit_of(databases) as quick, kit_of(databases) as slower:
        shard = quick.locate("acme").shard
        other = next(n for n in range(4) if n != shard)
        for kit, statements in ((quick, 140), (slower, 60)):
            with kit.read("acme") as session:
                for _ in range(statements):
                    session.execute(statement)
        with quick.shard(other).session() as session:
            session.execute(statement)
        with slower.begin("acme") as session, clock.taking(0.5):
            session.execute(statement)
        assert slower.load().p99_s[shard] >= 0.5, "one of 62 is more than one in a hundred"
        assert quick.load().p99_s.keys() == {shard, other}
        quick._router.load.send()
        slower._router.load.send()
        both = loads.lately_took(catalog, since_s=60)
        assert counted(both, shard) == 140 + 60 + 2, "a COMMIT is a statement too"
        assert both.p99_s()[shard] < 0.5 <= max(LIMITS_S[b.bucket] for b in both.buckets() if b.shard == shard)
        for _ in range(2):
            with slower.read("acme") as session, clock.taking(0.5):
                session.execute(statement)
        slower._router.load.send()
        assert loads.lately_took(catalog, since_s=60).p99_s()[shard] >= 0.5, "three of 204 are slow"


def test_what_failed_took_its_time_too(databases):
    with kit_of(databases) as kit:
        with pytest.raises(DBAPIError), kit.begin("acme") as session:
            session.execute(text("SELECT pg_sleep(0.2) / 0"))
        with pytest.raises(DBAPIError), kit.begin("acme") as session:
            session.execute(text("SET LOCAL statement_timeout = 200"))
            session.execute(text("SELECT pg_sleep(60)"))
        assert kit.load().p99_s[kit.locate("acme").shard] >= 0.2


def test_a_catalog_of_an_older_release_is_told_what_it_has_a_place_for(databases, catalog):
    catalog.execute("ALTER TABLE shardkit_catalog.latencies RENAME TO later")
    try:
        with kit_of(databases) as kit:
            work(kit, "acme", 3)
            assert kit._router.load.send()
        assert told(catalog).total == 3
        assert loads.lately_took(catalog, since_s=60).p99_s() == {}
    finally:
        catalog.execute("ALTER TABLE shardkit_catalog.later RENAME TO latencies")


def test_memory_is_bounded_whatever_comes(databases):
    with kit_of(databases) as kit:
        count = kit._router.load
        for n in range(2_000):
            count.seen(kit.locate(f"tenant{n}"))
            count.seen(kit.locate("hot"))
            if n % 100 == 0:
                kit.load()
        seen = kit.load()
        assert seen.total == 4_000
        assert len(count._sketch) < 2 * loads.PLACES
        assert seen.tenants[0].tenant == "hot"
        assert seen.tenants[0].units - seen.tenants[0].error <= 2_000 <= seen.tenants[0].units


def test_a_plan_by_load_needs_figures_and_follows_them(databases, catalog):
    settings = Settings(catalog_url=databases.catalog_url)
    with pytest.raises(PlacementError, match="no program has told"):
        make_plan(settings, by="load")
    with kit_of(databases) as kit:
        crowded = kit.map.placement(0).server
        mine = kit.map.shards_on(crowded)
        for shard in mine:
            for _ in range(100):
                count = kit._router.load
                count.seen(kit.map.route(shard))
        kit._router.load.send()
        plan = make_plan(settings, by="load")
    assert [move.source for move in plan.moves] == [crowded], "one of the two busy shards goes to the idle server"
    assert plan.before[crowded] == 100 * len(mine)
    assert max(plan.after.values()) == 100
