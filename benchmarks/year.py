"""A year of placement and rebalancing for fleets past one machine: no servers, but the planner that a real cluster uses."""

from __future__ import annotations

import gc
import json
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import numpy as np

from shardkit.core.hashing import MAX_SHARDS
from shardkit.core.levelling import NOISE
from shardkit.core.placement import Plan, place, plan
from shardkit.core.shardmap import Placement, Server, ShardMap

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from benchmarks.harness import Bench

    Floats = NDArray[np.float64]

QUESTION: Final = "How does a fleet of 10 to 10,000 servers stay even for a year, and what does that cost?"
FLEETS: Final = (10, 100, 1000, 10_000)
TENANTS: Final = 10_000_000
WEEKS: Final = 52
SHARDS_PER_SERVER: Final = 8
"""Fewer and no placement is even: a fleet too large for one cluster's 8,192 shards is several clusters."""
TOLERANCE: Final = 0.02
COPY_BYTES_PER_S: Final = 50e6
SMALLEST: Final = 200e3
LARGEST: Final = 10e9
"""Bytes; a tenant beyond would be given a cluster of its own."""
PARETO: Final = 1.3
ASKED: Final = 0.7
"""Queries of a tenant grow with its bytes to this power: twice the rows are not twice the visits."""
FAME: Final = 1000
"""How many times its queries a famous tenant gets."""
HOT: Final = 1.5
REFRESH_HEAD: Final = 378
"""Bytes of a refresh that are there whatever has changed; a test traces a real one."""


@dataclass(frozen=True, slots=True)
class World:
    """Bytes and queries of each shard, in the rows of each week."""

    bytes: Floats
    queries: Floats


@dataclass(slots=True)
class Year:
    """What happened to one cluster, week by week."""

    drifted: list[float] = field(default_factory=list)
    """Fullest server over its fair share, before the week's rebalance."""
    fullest: list[float] = field(default_factory=list)
    """The same after it."""
    over_best: list[float] = field(default_factory=list)
    """Fullest server over the least that any placement could reach: the fair share, or the largest shard."""
    moved: list[float] = field(default_factory=list)
    least: list[float] = field(default_factory=list)
    """Bytes that were moved, and those without which the servers could not have come as near to their share as they did."""
    moves: list[int] = field(default_factory=list)
    oversized: list[int] = field(default_factory=list)
    hot: list[float] = field(default_factory=list)
    """Share of the servers that are asked for more than HOT times their share of the queries."""
    held: list[float] = field(default_factory=list)
    drain_s: list[float] = field(default_factory=list)
    """Time to empty the fullest server, or the replica that took over for it, bound by what one server can copy."""


def run(bench: Bench) -> None:
    fleets, tenants, weeks = FLEETS, bench.pick(TENANTS, TENANTS // 10), bench.pick(WEEKS, 13)
    bench.params |= {
        "tenants": tenants, "weeks": weeks, "pareto": PARETO, "smallest_bytes": SMALLEST, "largest_bytes": LARGEST,
        "tolerance": TOLERANCE, "copy_bytes_per_s": COPY_BYTES_PER_S, "hot": HOT,
        "events": "a tenth more servers after a quarter, a twentieth drained at half-time, one dead after three quarters",
    }  # fmt: skip
    for servers in fleets:
        if bench.quick and servers > 1000:
            bench.skip(f"fullest_over_best_{servers}", "not in a --quick run, nor the other figures of this fleet")
            continue
        clusters = -(-servers * SHARDS_PER_SERVER // MAX_SHARDS)
        each = tenants // clusters
        task = bench.progress.add_task(f"{servers} servers in {clusters} clusters", total=clusters * weeks)
        years = []
        for cluster in range(clusters):
            world = make_world(each, shards=MAX_SHARDS, weeks=weeks, seed=bench.seed + cluster)
            years.append(simulate(world, servers=servers // clusters, tick=partial(bench.progress.advance, task)))
        _record(bench, servers, servers // clusters, years)


def make_world(tenants: int, *, shards: int, weeks: int, seed: int) -> World:
    """Tenants of Pareto sizes, hashed to shards. Two of five come during the year, each grows at a pace of its own, a few
    become famous for a week.
    """
    draw = np.random.default_rng(seed)
    comes = np.sort(np.maximum(draw.integers(-3 * weeks // 2, weeks, tenants), 0))  # who is there is a slice, not a mask
    home = draw.integers(0, shards, tenants, dtype=np.intp)  # as a good hash would
    size = np.minimum(SMALLEST * (draw.pareto(PARETO, tenants) + 1), LARGEST)
    grows = draw.lognormal(0.01, 0.02, tenants)  # each week
    asks, asks_more = size**ASKED, grows**ASKED  # kept beside the size: a power of ten million numbers takes long
    held, asked = np.empty((weeks, shards)), np.empty((weeks, shards))
    for week in range(weeks):
        here = slice(0, int(np.searchsorted(comes, week, side="right")))
        for values, factors, most in ((size[here], grows[here], LARGEST), (asks[here], asks_more[here], LARGEST**ASKED)):
            np.minimum(np.multiply(values, factors, out=values), most, out=values)
        held[week] = np.bincount(home[here], weights=size[here], minlength=shards)
        asked[week] = np.bincount(home[here], weights=asks[here], minlength=shards)
        famous = draw.integers(0, tenants, max(1, tenants // 100_000))
        famous = np.unique(famous[famous < here.stop])
        asked[week] += np.bincount(home[famous], weights=(FAME - 1) * asks[famous], minlength=shards)
    return World(held, asked)


def simulate(world: World, *, servers: int, tick: Callable[[], None] = lambda: None) -> Year:
    """A cluster of *servers* that is made by the number of shards, as by `init`, and levelled by bytes every week."""
    year, weeks, shards = Year(), *world.bytes.shape
    fleet = {f"pg{number}": 1.0 for number in range(servers)}
    current = place(range(shards), fleet)
    for week in range(weeks):
        _happen(fleet, week / weeks, (week - 1) / weeks, servers)
        loads = dict(enumerate(world.bytes[week].tolist()))
        found = rebalance(current, fleet, loads)
        _note(year, found, fleet, current=current, loads=loads)
        current = dict(found.placement)
        asked = _sums(current, world.queries[week], list(fleet))
        year.hot.append(float(np.mean(asked > HOT * asked.mean())))
        tick()
    return year


def rebalance(current: Mapping[int, str], fleet: Mapping[str, float], loads: Mapping[int, float]) -> Plan:
    """The plan of `shardkit rebalance --by bytes`."""
    return plan(current, fleet, loads=loads, tolerance=TOLERANCE)


def _happen(fleet: dict[str, float], now: float, before: float, servers: int) -> None:
    """Servers come and go, each time at the first week past its date."""
    if before < 0.25 <= now:
        fleet |= {f"new{number}": 1.0 for number in range(max(1, servers // 10))}
    if before < 0.5 <= now:
        for number in range(max(1, servers // 20)):
            del fleet[f"pg{number}"]
    if before < 0.75 <= now:  # its replica was promoted, and is emptied
        del fleet[f"pg{servers - 1}"]


def _note(
    year: Year, found: Plan, fleet: Mapping[str, float], *, current: Mapping[int, str], loads: Mapping[int, float]
) -> None:
    total, share = sum(loads.values()), sum(loads.values()) / len(fleet)
    year.held.append(total)
    year.drifted.append(max(found.before[name] for name in fleet) / share)
    fullest = max(fleet, key=lambda name: found.after[name])
    year.fullest.append(found.after[fullest] / share)
    year.over_best.append(found.after[fullest] / max(share, *loads.values()))
    year.moved.append(found.moved)
    year.least.append(_least(found, fleet, current=current, loads=loads, share=share))
    year.moves.append(len(found.moves))
    year.oversized.append(len(found.oversized))
    year.drain_s.append(found.after[fullest] / COPY_BYTES_PER_S)


def _least(
    found: Plan, fleet: Mapping[str, float], *, current: Mapping[int, str], loads: Mapping[int, float], share: float
) -> float:
    """Bytes that no plan could leave where they are and come out as even as *found*: a bound from below, not always reached."""
    stays = dict.fromkeys(fleet, (1 + TOLERANCE) * share)  # a shard above that is left alone, and what is beside it goes
    lightest: dict[str, float] = {}
    for shard, name in current.items():
        if name in fleet:
            stays[name] = max(stays[name], loads[shard])
        lightest[name] = min(lightest.get(name, loads[shard]), loads[shard])
    least = 0.0
    for name, load in found.before.items():
        # Nothing need leave a server that ends above its share because nowhere is room; and what leaves are whole shards.
        over = load - max(stays.get(name, 0.0), found.after[name])
        least += max(over, lightest[name]) if over > NOISE * load else 0.0
    return least


def _sums(placement: Mapping[int, str], loads: Floats, names: Sequence[str]) -> Floats:
    number = {name: place for place, name in enumerate(names)}
    homes = [number[placement[shard]] for shard in range(len(loads))]
    return np.bincount(homes, weights=loads, minlength=len(names)).astype(np.float64)


def _record(bench: Bench, servers: int, each: int, years: list[Year]) -> None:
    """Figures of a fleet: the worst of its clusters for what must be even, their sum for what must be carried."""
    weeks = range(len(years[0].moves))

    def worst(series: str) -> list[float]:
        return [max(getattr(year, series)[week] for year in years) for week in weeks]

    def total(series: str) -> float:
        return float(sum(sum(getattr(year, series)) for year in years))

    bench.record(f"fullest_over_best_{servers}", worst("over_best"), unit="ratio", goal=1.05)
    bench.record(f"fullest_over_share_{servers}", worst("fullest"), unit="fair shares")
    bench.record(f"drifted_over_share_{servers}", worst("drifted"), unit="fair shares")
    bench.record(f"oversized_shards_{servers}", [float(value) for value in worst("oversized")], unit="shards")
    bench.record(f"hot_servers_{servers}", worst("hot"), unit="share")
    held = total("held") / len(weeks)
    bench.record(f"moved_share_{servers}", [total("moved") / held], unit="share")
    least = total("least")
    bench.record(f"moved_over_least_{servers}", [total("moved") / least if least else 1.0], unit="ratio", goal=1.5)
    moves = int(total("moves"))
    bench.record(f"moves_{servers}", [float(moves)], unit="moves")
    bench.record(f"map_kb_{servers}", [map_bytes(each) / 1000], unit="kB")
    traffic = moves / len(years) * refresh_bytes(dict(_servers(each)).values(), changed=1)
    bench.record(f"refresh_mb_{servers}", [traffic / 1e6], unit="MB per program")
    bench.record(f"drain_minutes_{servers}", [seconds / 60 for seconds in worst("drain_s")], unit="min")


def map_bytes(servers: int, *, shards: int = MAX_SHARDS) -> int:
    """Memory of a program's shard map."""
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        kept = ShardMap(UUID(int=0), 1, shards, "str", dict(_servers(servers)), dict(_placements(servers, shards)))
        held = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(kept.placements) == shards
    return held


def _servers(count: int) -> Iterator[tuple[str, Server]]:
    for number in range(count):
        name = f"pg{number}"
        yield name, Server(name, f"host=db-{number}.example.net port=5432 dbname=app user=app", UUID(int=number))


def _placements(servers: int, shards: int) -> Iterator[tuple[int, Placement]]:
    names = [f"pg{number}" for number in range(servers)]
    for shard in range(shards):
        yield shard, Placement(names[shard % servers], shard % 40)


def refresh_bytes(servers: Iterable[Server], *, changed: int) -> int:
    """What the catalog sends to one program after a change: the cluster's row, every server's, and the changed shards'."""
    rows = [_row(server.name, server.dsn, str(server.server_id), 1, "active", [], 0) for server in servers]
    return REFRESH_HEAD + sum(rows) + changed * _row(4096, "pg100", 12, None)


def _row(*values: Any) -> int:
    """Length of a row as JSON, with what parts it from the next."""
    return len(json.dumps(values)) + 2
