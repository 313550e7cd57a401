"""What the benchmark `shards` stands on: equal data, honest clients, servers of fixed capacity, an even placement."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice

import psycopg
import pytest
from psycopg import sql

from benchmarks import workloads
from benchmarks.crowd import Order, crowd
from benchmarks.local import family
from benchmarks.shards import Layout, by_load, fixed, gated, touched_mb
from benchmarks.workloads import LOADS, name
from shardkit import Settings, ShardKit
from shardkit.core.hashing import shard_of
from shardkit.schema.blueprint import from_metadata
from shardkit.schema.bootstrap import carry_out, initialize, plan_init

PER_S = 50.0


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(workloads, "TENANTS", 40)


def made(databases, shards, load):
    settings = Settings(catalog_url=databases.catalog_url)
    blueprint = from_metadata(LOADS[load].metadata)
    initialize(settings, servers=databases.servers, shard_count=shards, blueprint=blueprint)
    with ShardKit(settings=settings) as kit:
        LOADS[load].furnish(kit, databases.servers)
        return settings, [kit.map.route(shard) for shard in range(shards)]


def rows(databases, routes, table, column="*"):
    found = []
    for route in routes:
        with psycopg.connect(databases.servers[route.server]) as connection:
            wanted = sql.SQL("*") if column == "*" else sql.Identifier(column)
            query = sql.SQL("SELECT {} FROM {}").format(wanted, sql.Identifier(route.schema, table))
            found += connection.execute(query).fetchall()
    return sorted(found)


def test_the_data_are_the_same_row_by_row_whatever_the_number_of_shards(shardkit_databases, few):
    held = []
    for shards, servers in ((1, 1), (8, 2)):
        databases = shardkit_databases(servers)
        _, routes = made(databases, shards, "photos")
        held.append(rows(databases, routes, "photos"))
    assert held[0] == held[1]
    assert len(held[0]) == 40 * 10


@pytest.mark.parametrize("load", ["photos", "bank"])
def test_every_operation_of_a_load_works_and_the_same_seed_gives_the_same(load, shardkit_databases, few):
    databases = shardkit_databases(2)
    settings, routes = made(databases, 4, load)
    with ShardKit(settings=settings) as kit:
        for operation in islice(LOADS[load].client(kit, 1), 60):
            operation()
    one, two = ([number for _, number in islice(LOADS[load].draws(5), 300)] for _ in range(2))
    assert one == two
    if load == "bank":
        moved = sum(delta for (delta,) in rows(databases, routes, "history", "delta"))
        for table in ("branches", "tellers", "accounts"):
            assert sum(balance for (balance,) in rows(databases, routes, table, "balance")) == moved != 0
        assert len(rows(databases, routes, "history")) == 60


def test_the_skew_is_real():
    weights = LOADS["photos"].weights()
    assert 0.1 < weights[0] / sum(weights) < 0.13


def test_a_crowd_counts_what_was_answered_in_time_and_a_failed_operation_is_no_figure(shardkit_databases):
    databases = shardkit_databases(1)
    settings, _ = made(databases, 2, "photos")
    order = Order(str(settings.catalog_url), "photos", clients=3, pool_size=2, lasting_s=4.0, seed=1)
    with crowd() as clients:
        tally = clients.run(order)
        assert tally.taken_s
        assert max(tally.taken_s) <= 4.0
        assert tally.per_s == len(tally.taken_s) / 4.0
        with pytest.raises(RuntimeError, match="bank: a client failed"):
            clients.run(Order(order.catalog_url, "bank", 3, 2, 4.0, 1))


def test_memory_of_a_backend_grows_with_the_shards_it_has_read(shardkit_databases, few):
    held = []
    for shards in (1, 64):
        databases = shardkit_databases(1)
        made(databases, shards, "photos")
        held.append(touched_mb(Layout("photos", shards, 1, databases.catalog_url, databases.servers)))
    assert 0.5 < held[0] < held[1] - 0.5


def test_load_is_spread_evenly_though_tenants_are_not():
    placement, held = by_load("photos", 64, ["pg1", "pg2", "pg3", "pg4"]), dict.fromkeys(["pg1", "pg2", "pg3", "pg4"], 0.0)
    weights = LOADS["photos"].weights()
    for number, weight in enumerate(weights):
        held[placement[shard_of(name(number), tenant_type="str", shard_count=64)]] += weight
    assert max(held.values()) / (sum(weights) / 4) < 1.02


def loaded(databases, shards, *, servers, crowded, lasting_s=1.0):
    """A run of photos against servers of fixed capacity: what came of it, and the statements that passed at each server."""
    layout = Layout("photos", shards, servers, databases.catalog_url, databases.servers)
    with ExitStack() as stack:
        gates = gated(stack, layout, per_s=PER_S)
        with crowd() as clients:
            run = fixed(clients, layout, gates, lasting_s=lasting_s, seed=1, crowded=crowded, per_s=PER_S)
        ends = run.tally.began + lasting_s
        return run, {name: gate.passed(run.tally.began, ends) for name, (gate, _) in gates.items()}


def test_servers_of_fixed_capacity_do_no_more_than_it_and_none_lends_its_own(shardkit_databases):
    databases = shardkit_databases(2)
    made(databases, 4, "photos")
    run, passed = loaded(databases, 4, servers=2, crowded=8, lasting_s=3.0)
    assert 0 < run.used <= 1 + 2 / (2 * PER_S * 3)
    assert all(0 < count <= PER_S * 3 + 1 for count in passed.values())
    assert sum(passed.values()) == round(run.used * 2 * PER_S * 3, 6)  # a share is no exact number


def test_a_planted_imbalance_cannot_reach_what_the_servers_could_do(shardkit_databases):
    databases = shardkit_databases(2)
    settings = Settings(catalog_url=databases.catalog_url)
    begun = replace(plan_init(settings, servers=databases.servers, shard_count=4), placements=dict.fromkeys(range(4), "pg1"))
    carry_out(settings, begun, blueprint=from_metadata(LOADS["photos"].metadata))
    with ShardKit(settings=settings) as kit:
        LOADS["photos"].furnish(kit, databases.servers)
    run, passed = loaded(databases, 4, servers=2, crowded=8)
    assert passed["pg2"] == 0
    assert run.used <= 0.5 + 1 / (2 * PER_S), "as much as the one server that has all shards"


def test_a_planted_bottleneck_before_the_servers_leaves_them_unused(shardkit_databases):
    databases = shardkit_databases(3)
    made(databases, 8, "photos")
    layout = Layout("photos", 8, 3, databases.catalog_url, databases.servers)
    with ExitStack() as stack:
        gates = gated(stack, layout, per_s=PER_S)
        with crowd() as clients:
            order = Order(layout.catalog_url, "photos", 1, 1, 1.0, 1, tuple((name, url) for name, (_, url) in gates.items()))
            tally = clients.run(order)  # one client, as behind a lock: one statement at a time in the whole cluster
        passed = [gate.passed(tally.began, tally.began + 1.0) for gate, _ in gates.values()]
    assert sum(passed) <= PER_S + 1, "three servers are worth no more than one"


def test_a_family_has_its_children():
    parent = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(flush=True); input()'])"
    with subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        assert len(family([process.pid])) == 2
        assert process.stdin
        process.stdin.close()
