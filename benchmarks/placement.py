"""Is the shard map even, does it move no more than it must, and what does it weigh?"""

from __future__ import annotations

import gc
import tracemalloc
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING
from uuid import UUID

from hashring import HashRing

from shardkit import Settings, ShardKit, run_local
from shardkit.core.placement import place, plan
from shardkit.core.shardmap import Placement, Server, ShardMap
from shardkit.schema.bootstrap import initialize

if TYPE_CHECKING:
    from benchmarks.harness import Bench

QUESTION = "Is the shard map even, does it move no more than it must, and what does it weigh?"
SHARDS = 4096


def run(bench: Bench) -> None:
    """Exact figures, whose repetitions would all be the same; and one of time."""
    bench.record("max_over_mean", [max_over_mean()], unit="ratio", goal=1.001)
    bench.record("max_over_mean_ring_alone", [ring_max_over_mean()], unit="ratio")
    bench.record("moves_over_optimum", [moves_over_optimum()], unit="ratio", goal=1.0)
    bench.record("map_bytes_1m_pins", [float(map_bytes())], unit="bytes")
    _hot_tenant(bench)


def _hot_tenant(bench: Bench) -> None:
    """`kit.locate` of a tenant asked for lately, against a look-up among 16 nodes of `hashring`."""
    tenants, calls = [f"tenant-{n}" for n in range(64)], range(50)
    ring = HashRing(sorted(_fleet(16)))
    with run_local(servers=1, redis=False, trust=True, fast=True) as cluster:
        initialize(Settings(catalog_url=cluster.catalog_url), servers={"pg1": cluster.servers[0].url}, shard_count=256)
        with ShardKit(cluster.catalog_url) as kit:

            def located() -> None:
                locate = kit.locate
                for _ in calls:
                    for tenant in tenants:
                        locate(tenant)

            def ringed() -> None:
                get_node = ring.get_node
                for _ in calls:
                    for tenant in tenants:
                        get_node(tenant)

            rounds = bench.pick(21, 9)
            taken = bench.interleave({"ours": located, "hashring": ringed}, rounds=rounds, block=5)
    bench.ratio("locate_vs_hashring_16", ours=taken["ours"], other=taken["hashring"], goal=0.125)


def max_over_mean(shards: int = SHARDS) -> float:
    """Fullest server over its fair share in whole shards (rounded up); worst of 1 to 64 servers, equal and unequal."""
    worst = 0.0
    for count in range(1, 65):
        for servers in (_fleet(count), {f"pg{n}": 1.0 + n % 4 for n in range(count)}):
            held, unit = Counter(place(range(shards), servers).values()), shards / sum(servers.values())
            worst = max(worst, *(held[name] / -(-weight * unit // 1) for name, weight in servers.items()))
    return worst


def ring_max_over_mean(shards: int = SHARDS, n_servers: int = 64) -> float:
    """The same, of equal servers, where `hashring` alone decides."""
    ring = HashRing(sorted(_fleet(n_servers)))
    return max(Counter(ring.get_node(f"shard:{shard}") for shard in range(shards)).values()) / (shards / n_servers)


def moves_over_optimum(shards: int = SHARDS) -> float:
    """Moves over the fewest possible, summed while servers come and go one at a time: 3 → 16 → 3, then 64 → 65 → 64."""
    moves = optimum = 0
    for sizes in ([*range(3, 17), *range(15, 2, -1)], [64, 65, 64]):
        placement: Mapping[int, str] = place(range(shards), _fleet(sizes[0]))
        for _, size in pairwise(sizes):
            servers = _fleet(size)
            found = plan(placement, servers)
            moves += len(found.moves)
            optimum += fewest_moves(Counter(placement.values()), servers)
            placement = found.placement
    return moves / optimum


def fewest_moves(held: Mapping[str, int], servers: Mapping[str, float]) -> int:
    """Moves without which equal *servers* cannot be even: all above the floor, less the extra shards that may stay."""
    floor, extra = divmod(sum(held.values()), len(servers))
    surplus = sum(max(0, count - (floor if name in servers else 0)) for name, count in held.items())
    return surplus - min(extra, sum(held.get(name, 0) > floor for name in servers))


def map_bytes(pins: int = 1_000_000) -> int:
    """Memory in bytes of a map with *pins* pinned str tenants of 19 characters, keys and numbers included."""
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        pinned = _map(dict(_pins(pins)))
        gc.collect()
        held = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    if len(pinned.pins) != pins:
        raise AssertionError(f"{len(pinned.pins)} pins were kept, not {pins}")
    return held


def _pins(count: int) -> Iterator[tuple[str, int]]:
    """As rows come from a driver: each with a str and an int of its own."""
    return ((f"tenant-{n:012d}", int(str(n % SHARDS))) for n in range(count))


def _map(pins: dict[str | int, int]) -> ShardMap:
    server = Server("pg1", "postgresql://pg1/app", UUID(int=1))
    placements = dict.fromkeys(range(SHARDS), Placement("pg1", 1))
    return ShardMap(UUID(int=0), 1, SHARDS, "str", {"pg1": server}, placements, pins)


def _fleet(count: int) -> dict[str, float]:
    return {f"pg{n}": 1.0 for n in range(count)}
