"""What the benchmark `shards` stands on: equal data, honest clients, servers of fixed capacity, an even placement."""

from __future__ import annotations

import subprocess
import sys
from itertools import islice
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from benchmarks import capacity, workloads
from benchmarks.capacity import CapacityUnavailableError, fixed_capacity, used_s
from benchmarks.crowd import Order, crowd
from benchmarks.local import family
from benchmarks.shards import Layout, by_load, touched_mb
from benchmarks.workloads import LOADS, name
from shardkit import Settings, ShardKit
from shardkit.core.hashing import shard_of
from shardkit.schema.blueprint import from_metadata
from shardkit.schema.bootstrap import initialize

SPIN = """
import time
input()
ends = time.monotonic() + 0.6
while time.monotonic() < ends: pass
print(flush=True)
input()
"""


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
    order = Order(str(settings.catalog_url), "photos", clients=3, pool_size=2, lasting_s=2.0, seed=1)
    with crowd() as clients:
        tally = clients.run(order)
        assert tally.taken_s
        assert max(tally.taken_s) <= 2.0
        assert tally.per_s == len(tally.taken_s) / 2.0
        with pytest.raises(RuntimeError, match="bank: a client failed"):
            clients.run(Order(order.catalog_url, "bank", 3, 2, 2.0, 1))


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


def test_a_server_gets_no_more_than_its_capacity():
    command = [sys.executable, "-c", SPIN]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        try:
            with fixed_capacity({"spinner": process.pid}, cores=0.1):
                group = Path(f"/proc/{process.pid}/cgroup").read_text("ascii")
                before = used_s([process.pid])
                process.stdin.write("\n")
                process.stdin.flush()
                process.stdout.readline()
                spent = used_s([process.pid]) - before
        except CapacityUnavailableError as exc:
            pytest.skip(str(exc))
        finally:
            process.kill()
    assert "-spinner" in group
    assert 0 < spent < 0.3, "a tenth of a core for 0.6 s, where a free one takes all of it"
    assert not list(capacity.ROOT.rglob("shardkit-bench-*-spinner"))


def test_it_is_said_where_capacity_cannot_be_fixed(tmp_path, monkeypatch):
    monkeypatch.setattr(capacity, "ROOT", tmp_path)
    with pytest.raises(CapacityUnavailableError, match=r"no CPU"), fixed_capacity({"pg1": 1}, cores=0.1):
        pass
    assert not list(tmp_path.iterdir())


def test_groups_of_both_versions_of_the_kernel_interface(tmp_path, monkeypatch):
    monkeypatch.setattr(capacity, "ROOT", tmp_path)
    folder, limits = capacity.place("3:cpuset:/x\n1:cpu,cpuacct:/a\n0::/\n", quota_us=1000)
    assert (folder, limits["cpu.cfs_quota_us"]) == (tmp_path / "cpu" / "a", "1000")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "cgroup.subtree_control").write_text("cpu memory")
    assert capacity.place("0::/b\n", quota_us=1000) == (tmp_path / "b", {"cpu.max": "1000 20000"})
    (tmp_path / "b" / "cgroup.subtree_control").write_text("memory")
    with pytest.raises(CapacityUnavailableError, match="delegated"):
        capacity.place("0::/b\n", quota_us=1000)


def test_a_family_has_its_children():
    parent = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(flush=True); input()'])"
    with subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        assert len(family([process.pid])) == 2
        assert process.stdin
        process.stdin.close()
