"""The same rows and the same load over more and more shards, and over more servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import psycopg
from psycopg import conninfo
from sqlalchemy import make_url, select

from benchmarks.capacity import Gate
from benchmarks.crowd import PROCESSES, Crowd, Order, Tally, crowd
from benchmarks.harness import Bench
from benchmarks.local import postgresql_version, pss_kb
from benchmarks.statistics import quantile
from benchmarks.workloads import LOADS, TENANTS, Photo, name
from shardkit import Settings, ShardKit, run_local
from shardkit.core.hashing import shard_of
from shardkit.core.placement import plan
from shardkit.local import LocalCluster
from shardkit.local.databases import fresh_databases
from shardkit.schema.blueprint import from_metadata
from shardkit.schema.bootstrap import carry_out, plan_init

QUESTION = "What do more shards, and more servers, do to throughput, latency and memory?"
COUNTS = (1, 4, 16, 64, 256, 1024, 4096)
QUICK_COUNTS = (1, 64)
BANK_COUNTS = (1, 16, 64, 256)
QUICK_BANK_COUNTS = (1, 16)
SERVERS = (1, 2, 4)
FIXED = 64
"""The number of shards at which servers are compared."""
CLIENTS = 8
CLIENTS_PER_FIXED_SERVER = 32
"""Few clients leave one of four servers idle now and then, whatever the software: n clients keep 4 servers n/(n+3) busy."""
FIXED_PER_S = 150.0
"""Statements a second of a server of fixed capacity: four of them are a third of what two cores can do."""
CAPACITY_BOUND = 0.95
GOALS = {"shards_64_vs_1": 0.70, "servers_2_vs_1": 1.9, "servers_4_vs_1": 3.8}


@dataclass(frozen=True, slots=True)
class Layout:
    """One cluster with *shards* shards on *servers* servers, filled with the rows of *load*."""

    load: str
    shards: int
    servers: int
    catalog_url: str
    urls: dict[str, str]

    @property
    def label(self) -> str:
        """As in the names of figures."""
        return f"{self.shards}_on_{self.servers}"


def run(bench: Bench) -> None:
    counts, bank_counts = bench.pick(COUNTS, QUICK_COUNTS), bench.pick(BANK_COUNTS, QUICK_BANK_COUNTS)
    bench.params |= {
        "tenants": TENANTS, "clients": CLIENTS, "client_processes": PROCESSES, "fixed_per_s": FIXED_PER_S,
        "clients_per_fixed_server": CLIENTS_PER_FIXED_SERVER, "placement": "by expected operations of each shard",
        "transport": "TCP on loopback", "fsync": "on, data on tmpfs where it has room",
    }  # fmt: skip
    settings = {"max_connections": "500", "shared_buffers": "128MB", "autovacuum": "off"}
    with run_local(servers=max(SERVERS), redis=False, trust=True, settings=settings) as cluster, ExitStack() as stack:
        bench.versions["postgresql"] = postgresql_version(cluster)
        wanted = [("photos", shards, servers) for servers in SERVERS for shards in counts if shards >= servers]
        wanted += [("bank", shards, 1) for shards in bank_counts]
        layouts = list(_made(bench, stack, cluster, wanted))
        photos = [layout for layout in layouts if layout.load == "photos"]
        with crowd() as clients:
            _free(bench, clients, photos)
            _free(bench, clients, [layout for layout in layouts if layout.load == "bank"], prefix="bank_")
            _fixed(bench, clients, [layout for layout in photos if layout.shards == FIXED])
    for key in (f"shards_{shards}_vs_1" for shards in COUNTS[1:]):
        if key not in bench.results:
            bench.skip(key, "not in a --quick run")


def _made(bench: Bench, stack: ExitStack, cluster: LocalCluster, wanted: Sequence[tuple[str, int, int]]) -> Iterator[Layout]:
    """The clusters, each in databases of its own on the same servers."""
    task = bench.progress.add_task("making shards", total=sum(shards for _, shards, _ in wanted))
    for load, shards, servers in wanted:
        databases = stack.enter_context(fresh_databases(cluster.servers[:servers], servers))
        settings = Settings(catalog_url=databases.catalog_url)
        begun = plan_init(settings, servers=databases.servers, shard_count=shards)
        begun = replace(begun, placements=by_load(load, shards, list(databases.servers)))
        blueprint = from_metadata(LOADS[load].metadata)
        carry_out(settings, begun, blueprint=blueprint, progress=lambda done: bench.progress.advance(task, done))
        with ShardKit(settings=settings) as kit:
            LOADS[load].furnish(kit, databases.servers)
        yield Layout(load, shards, servers, databases.catalog_url, databases.servers)


def by_load(load: str, shards: int, servers: Sequence[str]) -> dict[int, str]:
    """Shard → server by the planner, which is told how often each shard is asked for: even counts are not even load."""
    loads = dict.fromkeys(range(shards), 0.0)
    for number, weight in enumerate(LOADS[load].weights()):
        loads[shard_of(name(number), tenant_type="str", shard_count=shards)] += weight
    found = plan(dict.fromkeys(range(shards)), dict.fromkeys(servers, 1.0), loads=loads, tolerance=0.002)
    return dict(found.placement)


def _free(bench: Bench, clients: Crowd, layouts: list[Layout], *, prefix: str = "") -> None:
    """Every layout with all the CPU there is, which client and servers share."""
    rounds, lasting_s = bench.pick(7, 5), bench.pick(1.5, 0.4)
    before: dict[str, tuple[int, int]] = {}
    tallies: dict[str, list[Tally]] = {layout.label: [] for layout in layouts}
    by_label = {layout.label: layout for layout in layouts}
    warm_s = bench.pick(2.0, 0.6)
    for label, _, counts in bench.schedule(list(by_label), rounds=rounds, warmup=1):
        layout = by_label[label]
        order = Order(layout.catalog_url, layout.load, CLIENTS, CLIENTS // PROCESSES, lasting_s, len(tallies[label]) + 1)
        if counts:
            before.setdefault(label, _blocks(layout))
            tallies[label].append(clients.run(order))
        else:
            clients.run(replace(order, lasting_s=warm_s, seed=0))
    for label, found in tallies.items():
        bench.record(f"{prefix}ops_{label}", [tally.per_s for tally in found], unit="ops/s", better="higher")
        for percent in (50, 99):
            values = [quantile(tally.taken_s, percent / 100) * 1000 for tally in found]
            bench.record(f"{prefix}p{percent}_ms_{label}", values, unit="ms")
        megabytes, layout = _backends_mb(by_label[label]), by_label[label]
        bench.record(f"{prefix}connections_{label}", [float(len(megabytes))], unit="connections")
        bench.record(f"{prefix}backend_mb_{label}", megabytes, unit="MB")
        hit, read = (after - earlier for after, earlier in zip(_blocks(layout), before[label], strict=True))
        bench.record(f"{prefix}buffer_hit_{label}", [hit / (hit + read)], unit="share", better="higher")
    for layout in layouts:
        if layout.load == "photos" and layout.servers == 1:
            bench.record(f"touched_mb_{layout.label}", [touched_mb(layout)], unit="MB")
        if layout.servers == 1 and layout.shards > 1:
            _times(bench, f"{prefix}shards_{layout.shards}_vs_1", tallies[layout.label], tallies["1_on_1"])
        elif layout.servers > 1 and layout.shards == FIXED:
            _times(bench, f"{prefix}servers_{layout.servers}_vs_1_free", tallies[layout.label], tallies[f"{FIXED}_on_1"])


def _fixed(bench: Bench, clients: Crowd, layouts: list[Layout]) -> None:
    """The same where each server serves a fixed number of statements a second, and four of them less than this machine can."""
    rounds, lasting_s = bench.pick(7, 5), bench.pick(4.0, 1.0)
    by_label = {layout.label: layout for layout in layouts}
    found: dict[str, list[Fixed]] = {label: [] for label in by_label}
    with ExitStack() as stack:
        gates = {layout.label: gated(stack, layout) for layout in layouts}
        for label, _, counts in bench.schedule(list(by_label), rounds=rounds, warmup=1):
            run = fixed(clients, by_label[label], gates[label], lasting_s=lasting_s, seed=100 + len(found[label]))
            if counts:
                found[label].append(run)
    for layout in layouts:
        label, runs = layout.label, found[layout.label]
        bench.record(f"fixed_ops_{label}", [run.tally.per_s for run in runs], unit="ops/s", better="higher")
        # Of what the servers could serve; below it, the way to them was what limited the load.
        bench.record(f"fixed_used_{label}", [run.used for run in runs], unit="share", better="higher", goal=CAPACITY_BOUND)
        # The same everywhere, or a ratio of operations is none of capacity.
        bench.record(f"fixed_statements_{label}", [run.statements for run in runs], unit="statements/op")
        if layout.servers > 1:
            alone = [run.tally for run in found[f"{FIXED}_on_1"]]
            _times(bench, f"servers_{layout.servers}_vs_1", [run.tally for run in runs], alone)


@dataclass(frozen=True, slots=True)
class Fixed:
    """A run against servers of fixed capacity: the share of it that was *used*, and the *statements* of one operation."""

    tally: Tally
    used: float
    statements: float


def gated(stack: ExitStack, layout: Layout, *, per_s: float = FIXED_PER_S) -> dict[str, tuple[Gate, str]]:
    """For each server of *layout* a gate that lets *per_s* statements a second through, and the URL that leads through it."""
    gates = {}
    for server, url in layout.urls.items():
        parts = make_url(url)
        gate = stack.enter_context(Gate(parts.host or "127.0.0.1", parts.port or 5432, per_s=per_s))
        gates[server] = gate, parts.set(port=gate.port).render_as_string(hide_password=False)
    return gates


def fixed(
    clients: Crowd, layout: Layout, gates: Mapping[str, tuple[Gate, str]], *, lasting_s: float, seed: int,
    crowded: int = CLIENTS_PER_FIXED_SERVER, per_s: float = FIXED_PER_S,
) -> Fixed:  # fmt: skip
    """One run of *crowded* clients for each server of *layout*, all of them through *gates*."""
    servers = tuple((server, url) for server, (_, url) in gates.items())
    each = CLIENTS_PER_FIXED_SERVER // PROCESSES // 2  # the others wait in the client for a connection
    tally = clients.run(Order(layout.catalog_url, layout.load, crowded * len(gates), each, lasting_s, seed, servers))
    passed = sum(gate.passed(tally.began, tally.began + lasting_s) for gate, _ in gates.values())
    return Fixed(tally, passed / (per_s * len(gates) * lasting_s), passed / len(tally.taken_s))


def _times(bench: Bench, key: str, ours: list[Tally], other: list[Tally]) -> None:
    values = [one.per_s / two.per_s for one, two in zip(ours, other, strict=True)]
    bench.record(key, values, unit="times", better="higher", goal=GOALS.get(key))


def _backends_mb(layout: Layout) -> list[float]:
    """Memory of each backend that serves clients of *layout*, without the shared buffers."""
    pids = _on_each(layout, _pids)
    return [pss_kb(pid, "Pss_Anon") * 1024 / 1e6 for server in pids for pid in server]


def touched_mb(layout: Layout) -> float:
    """Memory of one backend that has read from every shard of *layout*, as each one will in the end; of one server."""
    with ShardKit(layout.catalog_url, pool_size=1) as kit:
        (before,) = _on_each(layout, _pids)
        for shard in kit.map.placements:
            with kit.shard(shard).session() as session:
                session.scalars(select(Photo.id).limit(1)).all()
        (after,) = _on_each(layout, _pids)
        return sum(pss_kb(pid, "Pss_Anon") for pid in set(after) - set(before)) * 1024 / 1e6


def _blocks(layout: Layout) -> tuple[int, int]:
    """Blocks found in shared buffers, and blocks read from elsewhere, since the databases were made."""
    found = _on_each(layout, _hits)
    return sum(hit for hit, _ in found), sum(read for _, read in found)


def _on_each(layout: Layout, ask: Callable[[psycopg.Connection[Any]], Any]) -> list[Any]:
    answers = []
    for url in layout.urls.values():
        with psycopg.connect(conninfo.make_conninfo(url), autocommit=True) as connection:
            answers.append(ask(connection))
    return answers


def _pids(connection: psycopg.Connection[Any]) -> list[int]:
    rows = connection.execute(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend' "
        "AND pid <> pg_backend_pid()"
    )
    return [pid for (pid,) in rows]


def _hits(connection: psycopg.Connection[Any]) -> tuple[int, int]:
    row = connection.execute("SELECT blks_hit, blks_read FROM pg_stat_database WHERE datname = current_database()").fetchone()
    assert row is not None
    return row[0], row[1]
