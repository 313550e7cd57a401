"""A fourth server joins three: shards go there while every tenant is written to, without an error."""

from __future__ import annotations

import threading
from collections import Counter

import psycopg
import pytest
from sqlalchemy import text

from shardkit import Settings, ShardKit
from shardkit.catalog.membership import join, plan_joining
from shardkit.core.names import schema_name
from shardkit.errors import ShardKitError
from shardkit.local.databases import fresh_databases
from shardkit.move.options import MoveOptions
from shardkit.move.rebalance import carry_out, make_plan
from shardkit.schema.blueprint import Blueprint
from shardkit.schema.bootstrap import initialize

TABLES = """
CREATE TABLE entries (id bigint DEFAULT next_id() PRIMARY KEY, tenant text NOT NULL, n int NOT NULL, UNIQUE (tenant, n))
"""


def rebalanced(local_cluster, *, shards, tenants, writers, parallel):
    """What the plan was, what failed, what writers saw, and what is missing or misplaced afterwards."""
    with fresh_databases(local_cluster.servers, 4) as databases:
        *first, (name, url) = databases.servers.items()
        settings = Settings(catalog_url=databases.catalog_url, move_wait_s=60.0, servers={name: url})
        initialize(settings, servers=dict(first), shard_count=shards, blueprint=Blueprint(TABLES))
        join(settings, plan_joining(settings, name, url, weight=1.0))
        acked, errors, stop = [], [], threading.Event()

        def unit(session, tenant, n):
            session.execute(text("INSERT INTO entries (tenant, n) VALUES (:tenant, :n)"), {"tenant": tenant, "n": n})

        def write(writer):
            n = 0
            while not stop.is_set():
                n += 1
                tenant = f"tenant {(n * writers + writer) % tenants}"
                try:
                    kit.run(tenant, unit, tenant, n)
                    acked.append((tenant, n))
                except Exception as exc:
                    errors.append(exc)
                stop.wait(0.005)

        with ShardKit(settings=settings) as kit:
            threads = [threading.Thread(target=write, args=(writer,), daemon=True) for writer in range(writers)]
            for thread in threads:
                thread.start()
            plan = make_plan(settings)
            done, failed = carry_out(settings, plan.moves, parallel=parallel, options=MoveOptions(soak=False))
            stop.set()
            for thread in threads:
                thread.join(200)
                assert not thread.is_alive()
            shardmap = kit.refresh()
        found = Counter()
        for shard, place in shardmap.placements.items():
            with psycopg.connect(databases.servers[place.server]) as connection:
                schema = schema_name(shard, place.epoch)
                found.update(tuple(row) for row in connection.execute(f"SELECT tenant, n FROM {schema}.entries"))
        held = Counter(place.server for place in shardmap.placements.values())
        return plan, done, failed, errors, set(acked) - set(found), [key for key, count in found.items() if count > 1], held


def judge(result, *, shards):
    plan, done, failed, errors, lost, doubled, held = result
    assert (failed, errors, lost, doubled) == ([], [], set(), [])
    assert done == len(plan.moves) == shards // 4
    assert set(held.values()) == {shards // 4}


def test_a_fourth_server_gets_its_share_under_load(local_cluster):
    judge(rebalanced(local_cluster, shards=8, tenants=40, writers=2, parallel=2), shards=8)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_fourth_server_gets_its_share_of_256_shards_under_load(local_cluster):
    judge(rebalanced(local_cluster, shards=256, tenants=1000, writers=4, parallel=2), shards=256)


def test_a_move_that_fails_stops_no_other(local_cluster):
    with fresh_databases(local_cluster.servers, 2) as databases:
        settings = Settings(catalog_url=databases.catalog_url)
        shardmap = initialize(settings, servers=databases.servers, shard_count=4, blueprint=Blueprint(TABLES))
        plan = make_plan(settings, without="pg2")
        bad = schema_name(plan.moves[0].shard, 1)
        with psycopg.connect(databases.servers["pg2"], autocommit=True) as connection:
            connection.execute(f"CREATE UNLOGGED TABLE {bad}.quick (a int PRIMARY KEY)")
        heard = []
        done, failed = carry_out(settings, plan.moves, done=lambda planned, outcome: heard.append((planned.shard, outcome)))
        assert (done, len(failed), len(plan.moves)) == (1, 1, 2)
        assert isinstance(dict(heard)[plan.moves[0].shard], ShardKitError)
        assert shardmap.placement(plan.moves[0].shard).server == "pg2"
