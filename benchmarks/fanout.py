"""Fan-out against the plain way to ask every shard: one statement for each, in turn, merged by hand."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any

import psycopg
from psycopg import sql
from sqlalchemy import func, select
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Mapped, mapped_column

from benchmarks.delay_proxy import DelayProxy
from benchmarks.harness import Bench
from shardkit import Settings, ShardedBase, ShardKey, ShardKit, TenantScoped, run_local
from shardkit.local.databases import fresh_databases
from shardkit.schema.blueprint import from_metadata
from shardkit.schema.bootstrap import initialize

QUESTION = "How much faster is a fan-out than one statement per shard in turn?"
ROWS = 1000  # of each shard
GROUPS = 97
GOALS = {"top20": 5.0, "count": 1.6, "group": 2.5, "top20_rtt": 35.0, "count_rtt": 20.0, "group_rtt": 9.0}


class Sharded(ShardedBase):
    """Its own metadata, apart from other models of the process."""

    __abstract__ = True
    metadata = type(ShardedBase.metadata)()


class Event(TenantScoped, Sharded):
    """What is counted, grouped and listed."""

    __tablename__ = "events"
    id: Mapped[int] = mapped_column(ShardKey, primary_key=True)
    kind: Mapped[int]
    title: Mapped[str]
    size: Mapped[int]


TOP = sql.SQL("SELECT id, tenant_id, kind, title, size FROM {}.events ORDER BY id LIMIT 20")
COUNT = sql.SQL("SELECT count(*) FROM {}.events")
GROUP = sql.SQL("SELECT kind, count(*), sum(size) FROM {}.events GROUP BY kind")
FILL = sql.SQL(
    "INSERT INTO {schema}.events (id, tenant_id, kind, title, size) SELECT n * 8192 + {shard}, 'tenant-' || {shard},"
    " n * 31 % {groups}, 'event ' || n, n % 1000 FROM generate_series(1, {rows}) n"
)


def run(bench: Bench) -> None:
    """All keys; each shard count on databases of its own, on the same servers."""
    bench.params |= {"rows_per_shard": ROWS, "groups": GROUPS, "servers": 2, "transport": "TCP on loopback"}
    with run_local(servers=2, redis=False, trust=True, fast=True) as cluster:
        for shards in (16, 256, 1024):
            with fresh_databases(cluster.servers, 2) as databases, ExitStack() as stack:
                settings = Settings(catalog_url=databases.catalog_url)
                initialize(settings, servers=databases.servers, shard_count=shards, blueprint=from_metadata(Event.metadata))
                kit = stack.enter_context(ShardKit(settings=settings))
                _fill(kit, databases.servers)
                _measure(bench, kit, databases.servers, suffix=f"_{shards}")
                far = {name: stack.enter_context(_delayed(url)) for name, url in databases.servers.items()}
                far_kit = stack.enter_context(ShardKit(settings.catalog_url, servers=far))
                _measure(bench, far_kit, far, suffix=f"_{shards}_rtt")


def _measure(bench: Bench, kit: ShardKit, urls: dict[str, str], *, suffix: str) -> None:
    rtt = suffix.endswith("_rtt")
    shards = int(suffix.split("_")[1])
    rounds = bench.pick(15, 2 if rtt and shards > 256 else 3)
    block = bench.pick(5, 1) if shards <= 256 and not rtt else 1
    top = select(Event.id, Event.tenant_id, Event.kind, Event.title, Event.size).order_by(Event.id).limit(20)
    count = select(func.count()).select_from(Event)
    group = select(Event.kind, func.count(), func.sum(Event.size)).group_by(Event.kind)
    with ExitStack() as stack:
        by_server = {name: stack.enter_context(psycopg.connect(url, autocommit=True)) for name, url in urls.items()}
        places = [(by_server[route.server], sql.Identifier(route.schema)) for route in map(kit.map.route, kit.map.placements)]

        def each(query: sql.SQL) -> list[list[tuple[Any, ...]]]:
            return [connection.execute(query.format(schema)).fetchall() for connection, schema in places]

        def in_turn_top() -> list[tuple[Any, ...]]:
            return list(islice(heapq.merge(*each(TOP)), 20))

        def in_turn_count() -> int:
            return sum(rows[0][0] for rows in each(COUNT))

        def in_turn_group() -> set[tuple[Any, ...]]:
            counts: Counter[int] = Counter()
            sizes: Counter[int] = Counter()
            for rows in each(GROUP):
                for kind, number, size in rows:
                    counts[kind] += number
                    sizes[kind] += size
            return {(kind, number, sizes[kind]) for kind, number in counts.items()}

        pairs: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
            "top20": (lambda: list(map(tuple, kit.fan_out(top))), in_turn_top),
            "count": (lambda: kit.fan_out_scalar(count), in_turn_count),
            "group": (lambda: set(map(tuple, kit.fan_out(group))), in_turn_group),
        }
        for name, (ours, in_turn) in pairs.items():
            assert ours() == in_turn(), name
            taken = bench.interleave({"ours": ours, "in turn": in_turn}, rounds=rounds, block=block, warmup=bench.pick(2, 1))
            goal = GOALS[name + "_rtt" * rtt] if shards >= 256 else None
            bench.ratio(name + suffix, ours=taken["ours"], other=taken["in turn"], goal=goal, better="higher")


def _fill(kit: ShardKit, urls: dict[str, str]) -> None:
    def work(name: str) -> None:
        tables = [sql.Identifier(kit.map.route(shard).schema, "events") for shard in kit.map.shards_on(name)]
        with psycopg.connect(urls[name], autocommit=True) as connection:
            for shard in kit.map.shards_on(name):
                connection.execute(
                    FILL.format(
                        schema=sql.Identifier(kit.map.route(shard).schema),
                        shard=sql.Literal(shard),
                        groups=sql.Literal(GROUPS),
                        rows=sql.Literal(ROWS),
                    )
                )
            for start in range(0, len(tables), 128):
                part = sql.SQL(", ").join(tables[start : start + 128])
                connection.execute(sql.SQL("VACUUM (ANALYZE) {}").format(part))

    with ThreadPoolExecutor(len(urls)) as pool:
        list(pool.map(work, urls))


@contextmanager
def _delayed(url: str) -> Iterator[str]:
    parts = make_url(url)
    with DelayProxy(parts.host or "127.0.0.1", parts.port or 5432) as proxy:
        yield parts.set(port=proxy.port).render_as_string(hide_password=False)
