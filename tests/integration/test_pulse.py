"""Whoever watches a cluster sees it as it is, and nothing that hangs holds the watching up."""

from __future__ import annotations

import contextlib
import json
import threading

import pytest
from fleet import Order, fleet_on, tenants_of
from psycopg import sql

from shardkit import ShardKit, run_local
from shardkit.catalog import journal
from shardkit.catalog.pulse import PulseWatch, take_pulse
from shardkit.contrib.dashboard.feed import Feed
from shardkit.core.pulse import Pulse, ServerPulse, ShardPulse, forecast_s, with_rates
from shardkit.errors import CatalogUnavailableError
from shardkit.move import run
from shardkit.move.options import MoveOptions


def test_what_is_placed_is_seen_with_sizes_and_rates(fleet, tenant, eventually):
    with ShardKit(settings=fleet.settings(count_loads=False)) as kit, PulseWatch(fleet.settings()) as watch:
        first = watch.take()
        assert [(s.name, s.placed, len(s.shards), s.problem) for s in first.servers] == [
            ("pg1", 8, 8, None),
            ("pg2", 8, 8, None),
        ]
        assert all(shard.size_bytes > 10_000 for server in first.servers for shard in server.shards)
        route = kit.locate(tenant)
        with kit.begin(tenant) as session:
            session.add_all(Order(note=f"{tenant} {n}") for n in range(50))
        kit.close()  # PostgreSQL counts what a session did when it ends, or is idle for ten seconds

        def rate():
            server = next(s for s in watch.take().servers if s.name == route.server)
            return next(s for s in server.shards if s.shard == route.shard).writes_per_s

        eventually(rate)
    json.dumps(first.as_json())


def test_tenants_that_do_much_are_seen_where_programs_tell(fleet, tenant):
    with ShardKit(settings=fleet.settings(load_interval_s=3600.0)) as kit:
        for _ in range(5):
            with kit.read(tenant) as session:
                session.get(Order, 1)
        kit._router.load.send()
        route = kit.locate(tenant)
    pulse = take_pulse(fleet.settings())
    assert [hot.shard for hot in pulse.hot if hot.tenant == tenant] == [route.shard]
    shards = {shard.shard: shard for server in pulse.servers for shard in server.shards}
    assert shards[route.shard].units_per_s > 0
    assert 0 < shards[route.shard].p99_ms < 60_000
    idle = next(shard for shard in fleet.map.shards_on(route.server) if shard != route.shard)
    assert (shards[idle].units_per_s, shards[idle].p99_ms) == (0, None)


def test_a_table_that_is_locked_holds_nobody_up(fleet):
    route = fleet.map.route(0)
    with PulseWatch(fleet.settings()) as watch, fleet.admin(route.server) as other, other.transaction():
        other.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(sql.Identifier(route.schema, "orders")))
        assert [server.problem for server in watch.take().servers] == [None, None]


def test_how_far_a_move_is_is_in_the_journal(local_cluster, eventually):
    with fleet_on(local_cluster, shard_count=4) as fleet, PulseWatch(fleet.settings()) as watch:
        route = fleet.map.route(1)
        held, go = threading.Event(), threading.Event()

        def hold(_progress):
            held.set()
            assert go.wait(200)
            return 0.0

        with ShardKit(settings=fleet.settings()) as kit, kit.shard(1).begin() as session:
            session.add(Order(tenant_id=tenants_of(fleet.map, shard=1, count=1)[0], note="something to copy"))
        options = MoveOptions(throttle=hold, soak=False)
        move = run.begin(fleet.settings(), 1, fleet.other(route.server), options=options)
        mover = threading.Thread(target=run.go_on, args=(fleet.settings(), move.id), kwargs={"options": options})
        mover.start()
        try:
            assert held.wait(120)
            seen = eventually(lambda: next((m for m in watch.take().moves if m.step == "copy" and m.total), None))
            assert (seen.id, seen.shard, seen.source, seen.held, seen.stuck) == (move.id, 1, route.server, True, False)
        finally:
            go.set()
            mover.join()
        pulse = watch.take()
        (seen,) = pulse.moves
        assert (seen.step, seen.ended, seen.stuck) == ("finished", True, False)
        assert seen.stall_ms is not None
        assert pulse.version == fleet.map.version + 1


def test_a_move_that_stopped_is_seen(fleet):
    route = fleet.map.route(5)
    with fleet.admin() as catalog:
        move = journal.begin(catalog, shard=5, source=route.server, target=fleet.other(route.server), epoch=route.epoch)
        try:
            (seen,) = take_pulse(fleet.settings()).moves
            assert not seen.stuck  # it was only just written down
            catalog.execute(
                "UPDATE shardkit_catalog.moves SET updated_at = now() - interval '1 hour' WHERE id = %s", (move.id,)
            )
            (seen,) = take_pulse(fleet.settings()).moves
            assert seen.stuck
        finally:
            catalog.execute("DELETE FROM shardkit_catalog.moves WHERE id = %s", (move.id,))


def test_servers_that_are_down_and_a_catalog_that_comes_back():
    with run_local(servers=2, redis=False, trust=True, fast=True) as cluster, fleet_on(cluster, shard_count=4) as fleet:
        with PulseWatch(fleet.settings()) as watch:
            watch.take()
            cluster.kill_server("pg2")
            with contextlib.ExitStack() as stack:
                stack.callback(cluster.start_server, "pg2")
                healthy, dead = watch.take().servers
                assert healthy.problem is None
                assert dead.problem
                assert dead.placed == 2
            assert [server.problem for server in watch.take().servers] == [None, None]
            cluster.kill_server("pg1")
            with pytest.raises(CatalogUnavailableError):
                watch.take()
            cluster.start_server("pg1")
            assert [server.problem for server in watch.take().servers] == [None, None]


def one(at_s, reads, epoch=1):
    shard = ShardPulse(0, epoch, 1, reads, 0)
    server = ServerPulse(name="pg1", state="active", weight=1, placed=1, shards=(shard,))
    return Pulse(at_s=at_s, cluster="x", version=1, shard_count=1, servers=(server,))


def rate_of(pulse):
    return pulse.servers[0].shards[0].reads_per_s


def test_rates_are_of_the_same_shard_and_never_below_zero():
    assert rate_of(with_rates(one(2.0, 30), one(1.0, 10))) == 20
    assert rate_of(with_rates(one(2.0, 5), one(1.0, 10))) is None  # statistics were reset
    assert rate_of(with_rates(one(2.0, 30, epoch=2), one(1.0, 10))) is None  # it moved, and was counted elsewhere
    assert rate_of(with_rates(one(2.0, 30), None)) is None
    assert rate_of(with_rates(one(1.0, 30), one(1.0, 10))) is None


def test_a_forecast_needs_something_to_go_by():
    assert forecast_s(25, 100, since_s=5.0) == 15.0
    assert forecast_s(0, 100, since_s=5.0) is None
    assert forecast_s(5, 0, since_s=5.0) is None


class Counted:
    def __init__(self):
        self.looks, self.open = 0, 0

    def __call__(self):
        self.open += 1
        return self

    def take(self):
        self.looks += 1
        if self.looks == 2:
            raise CatalogUnavailableError("the catalog does not answer")
        return one(float(self.looks), 0)

    def close(self):
        self.open -= 1


def test_a_feed_looks_once_for_all_and_not_at_all_for_nobody(eventually):
    source = Counted()
    feed = Feed(source, every_s=0.01)
    first, second = feed.events(), feed.events()
    texts = [next(first), next(second), next(first), next(first)]
    assert source.open == 1
    told = [json.loads(text.partition("data: ")[2]) for text in texts]
    assert any("error" in news for news in told) or source.looks > 2
    first.close()
    second.close()
    eventually(lambda: source.open == 0)
    looks = source.looks
    again = feed.events()
    assert next(again)
    assert source.looks > looks
    feed.close()
    assert list(again) == []
    eventually(lambda: source.open == 0)
