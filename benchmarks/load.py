"""A routed read with and without counting what is done for each tenant and shard."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable
from contextlib import ExitStack
from itertools import count
from time import process_time

from benchmarks.harness import Bench
from benchmarks.routing import Photo
from shardkit import Settings, ShardKit, run_local
from shardkit.local.databases import fresh_databases
from shardkit.schema.blueprint import from_metadata
from shardkit.schema.bootstrap import initialize

QUESTION = "What does it cost a routed read that the units of work of tenants and shards are counted?"
SHARDS, TENANTS, ROWS = 16, 500, 1
GOAL = 1.02


def run(bench: Bench) -> None:
    """Both kits read the same rows of the same tenants over pools of their own, in shuffled blocks.

    ``counted_read_cpu`` is of processor time, which a busy machine disturbs less.
    """
    bench.params |= {"shards": SHARDS, "tenants": TENANTS}
    with ExitStack() as stack:
        cluster = stack.enter_context(run_local())
        databases = stack.enter_context(fresh_databases(cluster.servers, 2))
        settings = Settings(catalog_url=databases.catalog_url)
        initialize(settings, servers=databases.servers, shard_count=SHARDS, blueprint=from_metadata(Photo.metadata))
        kits = {
            on: stack.enter_context(
                ShardKit(settings=Settings(catalog_url=databases.catalog_url, count_loads=on, load_interval_s=1.0))
            )
            for on in (True, False)
        }
        tenants = [f"tenant{n}" for n in range(TENANTS)]
        ids = {}
        for tenant in tenants:
            with kits[False].begin(tenant) as session:
                photos = [Photo(title="t", likes=n, place=None) for n in range(ROWS)]
                session.add_all(photos)
                session.flush()
                ids[tenant] = photos[0].id
        turns = {on: count() for on in kits}

        def read(on: bool) -> None:
            tenant = tenants[next(turns[on]) * 7919 % TENANTS]
            with kits[on].read(tenant) as session:
                session.get_one(Photo, ids[tenant])

        taken = bench.interleave(
            {"counted": lambda: read(True), "not counted": lambda: read(False)},
            rounds=bench.pick(40, 15), block=bench.pick(1_000, 250),
        )  # fmt: skip
        bench.ratio("counted_read", ours=taken["counted"], other=taken["not counted"], goal=GOAL)
        spent = _processor_time(read, kits[True].load, rounds=bench.pick(40, 15), block=bench.pick(1_000, 250))
        bench.ratio("counted_read_cpu", ours=spent[True], other=spent[False], goal=GOAL)
        assert kits[True].load().total or kits[True].load().window_s < 5, "what was read was counted"


def _processor_time(
    read: Callable[[bool], None], count: Callable[[], object], *, rounds: int, block: int
) -> dict[bool, list[list[float]]]:
    """Seconds of processor time of this process for each read, by block; counting is part of its own block."""
    taken: dict[bool, list[list[float]]] = {True: [], False: []}
    order, draw = [True, False], random.Random(1)
    for _ in range(rounds):
        draw.shuffle(order)
        for on in order:
            gc.collect()
            count()
            began = process_time()
            for _ in range(block):
                read(on)
            if on:
                count()
            taken[on].append([(process_time() - began) / block])
    return taken
