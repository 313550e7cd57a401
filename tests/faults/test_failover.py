"""A promoted standby takes the writes over, and the old primary, when it comes back, gets none."""

from __future__ import annotations

import asyncio
import threading

import psycopg
import pytest
from fleet import Order, fleet_on
from psycopg import sql
from sqlalchemy import select
from sqlalchemy.engine import make_url
from standby import make_standby

from shardkit import AsyncShardKit, ShardKit
from shardkit.catalog.changes import set_replicas
from shardkit.core.names import schema_name
from shardkit.db.lineage import OldPrimaryError
from shardkit.errors import CommitUnknownError, Outcome, ServerDownError
from shardkit.local import run_local


class Pair:
    """The server ``pg2`` as two hosts: the local server of that name, and a standby of it."""

    def __init__(self, cluster, fleet):
        self.cluster, self.fleet = cluster, fleet
        self.standby = make_standby(cluster, of="pg2", name="pg2b")
        first = make_url(fleet.servers["pg2"])
        self.old_url, self.new_url = fleet.servers["pg2"], self.standby.url_of(first.database)
        self.url = f"postgresql://{first.username}@{first.host}:{first.port},{first.host}:{self.standby.port}/{first.database}"
        self.tenant = next(t for t in (f"tenant {n}" for n in range(1000)) if fleet.map.locate(t).server == "pg2")
        self.kits = []

    def kit(self, url=None, **given):
        kit = ShardKit(settings=self.settings(url, **given))
        self.kits.append(kit)
        return kit

    def settings(self, url=None, **given):
        return self.fleet.settings(servers={"pg2": url or self.url}, **{"replica_check_s": 0.05, **given})

    def kill_primary(self):
        self.cluster.kill_server("pg2")

    def old_primary_comes_back(self):
        self.cluster.start_server("pg2")
        assert one(self.old_url, "SELECT pg_is_in_recovery()") is False  # it would take writes

    def notes(self, url):
        """The rows of the tenant at *url*, without any of our code in between."""
        route = self.fleet.map.locate(self.tenant)
        with psycopg.connect(url, autocommit=True) as connection:
            query = sql.SQL("SELECT note FROM {} WHERE tenant_id = %s ORDER BY 1").format(
                sql.Identifier(route.schema, "orders")
            )
            return [note for (note,) in connection.execute(query, (self.tenant,))]

    def timeline_in_the_catalog(self):
        with self.fleet.admin() as catalog:
            return catalog.execute("SELECT timeline FROM shardkit_catalog.servers WHERE name = 'pg2'").fetchone()[0]


@pytest.fixture
def pair(eventually):
    with run_local(servers=2, redis=False, trust=True, fast=True) as cluster, fleet_on(cluster) as fleet:
        pair = Pair(cluster, fleet)
        try:
            yield pair
        finally:
            for kit in pair.kits:
                kit.close()
            eventually(lambda: not any(t.name == "shardkit-promoted" for t in threading.enumerate()))
            if pair.cluster.pid("pg2") is None:  # the databases are dropped at the end
                pair.cluster.start_server("pg2")


def one(url, query):
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(query).fetchone()[0]


def add(session, note):
    session.add(Order(note=note))


def promoted(pair, eventually):
    """Kill the primary once the standby has everything, and promote."""
    eventually(lambda: pair.standby.caught_up_with(pair.old_url))
    pair.kill_primary()
    pair.standby.promote()


def test_writes_are_back_after_a_promotion(pair, eventually):
    kit = pair.kit()
    kit.run(pair.tenant, add, "before")
    promoted(pair, eventually)
    kit.run(pair.tenant, add, "after")  # gives up by itself
    assert pair.notes(pair.new_url) == ["after", "before"]
    eventually(lambda: pair.timeline_in_the_catalog() == 2)


def test_a_write_waits_for_the_promotion(pair, eventually):
    kit = pair.kit()
    kit.run(pair.tenant, add, "before")
    eventually(lambda: pair.standby.caught_up_with(pair.old_url))
    pair.kill_primary()
    promotion = threading.Timer(1.0, pair.standby.promote)
    promotion.start()
    try:
        kit.run(pair.tenant, add, "after")
    finally:
        promotion.join()
    assert pair.notes(pair.new_url) == ["after", "before"]


def test_writes_are_back_for_asyncio_too(pair, eventually):
    async def add_one(session, note):
        session.add(Order(note=note))

    async def work():
        async with AsyncShardKit(settings=pair.settings()) as kit:
            await kit.run(pair.tenant, add_one, "before")
            await asyncio.to_thread(promoted, pair, eventually)
            pair.old_primary_comes_back()
            await kit.run(pair.tenant, add_one, "after")
        async with AsyncShardKit(settings=pair.settings()) as kit:
            await kit.run(pair.tenant, add_one, "later")

    asyncio.run(work())
    assert pair.notes(pair.new_url) == ["after", "before", "later"]
    assert pair.notes(pair.old_url) == ["before"]


def test_an_old_primary_that_comes_back_gets_no_write_from_a_new_program(pair, eventually):
    pair.kit().run(pair.tenant, add, "before")
    promoted(pair, eventually)
    pair.old_primary_comes_back()
    pair.kit().run(pair.tenant, add, "after")  # has seen nothing, and the old one is named first
    assert pair.notes(pair.new_url) == ["after", "before"]
    assert pair.notes(pair.old_url) == ["before"]


def test_an_old_primary_alone_is_refused_by_who_has_seen_the_new_one(pair, eventually):
    kit = pair.kit()
    kit.run(pair.tenant, add, "before")
    promoted(pair, eventually)
    kit.run(pair.tenant, add, "after")
    pair.standby.end()
    pair.old_primary_comes_back()
    for _ in range(3):
        with pytest.raises((OldPrimaryError, ServerDownError)) as caught, kit.begin(pair.tenant) as s:
            add(s, "lost")
        assert caught.value.outcome is Outcome.NOT_DONE
    with pytest.raises(OldPrimaryError), kit.begin(pair.tenant) as s:
        add(s, "lost")
    assert pair.notes(pair.old_url) == ["before"]


def test_an_old_primary_alone_is_refused_by_a_new_program_because_of_the_map(pair, eventually):
    kit = pair.kit()
    promoted(pair, eventually)
    kit.run(pair.tenant, add, "after")
    eventually(lambda: pair.timeline_in_the_catalog() == 2)
    pair.standby.end()
    pair.old_primary_comes_back()
    with pytest.raises(OldPrimaryError), pair.kit().begin(pair.tenant) as s:
        add(s, "lost")
    with pytest.raises(OldPrimaryError), pair.kit(pair.old_url).begin(pair.tenant) as s:
        add(s, "lost")
    assert pair.notes(pair.old_url) == []


def test_connections_to_a_primary_that_lives_on_are_given_up_when_the_map_says_so(pair, eventually):
    kit = pair.kit()
    kit.run(pair.tenant, add, "before")
    eventually(lambda: pair.standby.caught_up_with(pair.old_url))
    pair.standby.promote()  # and nobody stopped the old one
    pair.kit(pair.new_url).run(pair.tenant, add, "there")
    eventually(lambda: pair.timeline_in_the_catalog() == 2)
    kit.refresh()
    kit.run(pair.tenant, add, "after")
    assert pair.notes(pair.new_url) == ["after", "before", "there"]
    assert pair.notes(pair.old_url) == ["before"]


def test_a_standby_gets_no_write_before_its_promotion(pair):
    with pytest.raises(ServerDownError, match="standby") as caught, pair.kit(pair.new_url).begin(pair.tenant) as s:
        add(s, "lost")
    assert (caught.value.outcome, caught.value.retryable) == (Outcome.NOT_DONE, True)


def test_a_promoted_replica_is_no_replica_and_an_old_primary_neither(pair, eventually):
    with pair.fleet.admin() as catalog:
        set_replicas(catalog, "pg2", [pair.new_url, pair.old_url])
    kit = pair.kit()
    kit.run(pair.tenant, add, "before")
    eventually(lambda: pair.standby.caught_up_with(pair.old_url))  # it may show what was there a minute ago

    def served():
        with kit.read(pair.tenant, max_lag_s=60.0) as s:
            assert s.scalars(select(Order.note)).all() == ["before"]
            return s.on_replica

    eventually(served)
    promoted(pair, eventually)
    pair.old_primary_comes_back()
    kit.run(pair.tenant, add, "after")
    for _ in range(50):
        with kit.read(pair.tenant, max_lag_s=60.0) as s:
            assert sorted(s.scalars(select(Order.note))) == ["after", "before"]
            assert not s.on_replica


def test_a_token_from_before_the_promotion_leads_to_the_primary(pair, eventually):
    with pair.fleet.admin() as catalog:
        set_replicas(catalog, "pg2", [pair.new_url])
    kit = pair.kit()
    kit.run(pair.tenant, add, "before")
    token = kit.token(pair.tenant)
    promoted(pair, eventually)

    def read(session):
        return session.scalars(select(Order.note)).all()

    kit.run(pair.tenant, read)
    with kit.read(pair.tenant, replica=True, token=token) as s:
        assert (read(s), s.on_replica) == (["before"], False)


def test_a_fence_that_was_lost_with_the_primary_is_closed_again(pair, eventually):
    kit = pair.kit()
    kit.run(pair.tenant, add, "before")
    eventually(lambda: pair.standby.caught_up_with(pair.old_url))
    pair.standby.end()  # the fence does not reach it
    route = kit.locate(pair.tenant)
    pair.fleet.move(route, elsewhere=True)
    pair.kill_primary()
    pair.standby.start()
    pair.standby.promote()
    open_there = "SELECT to_regnamespace('{}') IS NOT NULL"
    assert one(pair.new_url, open_there.format(route.schema))
    other = next(t for t in (f"tenant {n}" for n in range(1000)) if t != pair.tenant and kit.locate(t).server == "pg2"
                 and kit.locate(t).shard != route.shard)  # fmt: skip
    kit.refresh()
    kit.run(other, add, "somebody else's")
    eventually(lambda: not one(pair.new_url, open_there.format(route.schema)))
    assert one(pair.new_url, open_there.format(schema_name(route.shard, route.epoch + 1)))
    eventually(lambda: pair.timeline_in_the_catalog() == 2)


def test_with_a_synchronous_standby_no_acknowledged_write_is_lost_or_doubled(pair, eventually):
    with psycopg.connect(pair.old_url, autocommit=True) as primary:
        primary.execute("ALTER SYSTEM SET synchronous_standby_names = 'pg2b'")
        primary.execute("SELECT pg_reload_conf()")
    eventually(lambda: one(pair.old_url, "SELECT sync_state FROM pg_stat_replication") == "sync")
    kit = pair.kit()
    acknowledged, doubtful, enough, failed_over = [], [], threading.Event(), threading.Event()

    def writer(name):
        after = 0
        while after < 5:
            note = f"{name} {len(acknowledged) + len(doubtful)}"
            try:
                kit.run(pair.tenant, add, note)
                acknowledged.append(note)
            except CommitUnknownError:
                doubtful.append(note)
            if len(acknowledged) > 100:
                enough.set()
            after += failed_over.is_set()

    writers = [threading.Thread(target=writer, args=(name,)) for name in "abcd"]
    for thread in writers:
        thread.start()
    assert enough.wait(200)
    pair.kill_primary()
    pair.standby.promote()
    pair.old_primary_comes_back()
    with psycopg.connect(pair.old_url, autocommit=True) as old:  # so that it would acknowledge writes
        old.execute("ALTER SYSTEM RESET synchronous_standby_names")
        old.execute("SELECT pg_reload_conf()")
    failed_over.set()
    for thread in writers:
        thread.join(200)
        assert not thread.is_alive()
    there = pair.notes(pair.new_url)  # the column is unique: nothing is there twice
    assert set(acknowledged) <= set(there) <= set(acknowledged) | set(doubtful)
