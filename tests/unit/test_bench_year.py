"""The simulated year keeps its own books: nothing is lost, and what is planted shows in the figures."""

from __future__ import annotations

from uuid import UUID

import numpy as np
import pytest

from benchmarks.year import HOT, World, make_world, refresh_bytes, simulate
from shardkit.core.shardmap import Server

SHARDS, WEEKS, SERVERS = 256, 12, 10


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(20_000, shards=SHARDS, weeks=WEEKS, seed=3)


def test_tenants_come_and_grow_and_none_is_lost(world: World) -> None:
    held = world.bytes.sum(axis=1)
    assert world.bytes.shape == world.queries.shape == (WEEKS, SHARDS)
    assert (np.diff(held) > 0).all()
    assert held[-1] / held[0] > 1.3


def test_the_same_seed_is_the_same_world(world: World) -> None:
    again = make_world(20_000, shards=SHARDS, weeks=WEEKS, seed=3)
    assert (again.bytes == world.bytes).all()
    assert (again.queries == world.queries).all()


def test_sizes_are_skewed_as_promised() -> None:
    few = make_world(20_000, shards=8192, weeks=1, seed=5).bytes[0]
    assert few.max() > 20 * np.median(few[few > 0])


def test_a_year_stays_even_and_moves_little_more_than_it_must(world: World) -> None:
    year = simulate(world, servers=SERVERS)
    assert len(year.fullest) == WEEKS
    assert max(year.over_best) < 1.1
    assert all(
        fullest <= drifted + 1e-9 or moves
        for fullest, drifted, moves in zip(year.fullest, year.drifted, year.moves, strict=True)
    )
    assert sum(year.moved) < 1.5 * sum(year.least)


def test_what_cannot_leave_need_not(world: World) -> None:
    packed = simulate(World(np.ones((1, 5)), np.ones((1, 5))), servers=2)  # three and two: nothing is gained by a move
    assert packed.over_best == [pytest.approx(1.2)]
    assert (packed.moved, packed.least) == ([0], [0])
    skewed = simulate(world, servers=64)
    assert all(least <= moved * (1 + 1e-9) for least, moved in zip(skewed.least, skewed.moved, strict=True))


def test_what_leaves_with_a_server_is_moved(world: World) -> None:
    steady = World(np.ones((WEEKS, SHARDS)), np.ones((WEEKS, SHARDS)))
    year = simulate(steady, servers=SERVERS)
    assert year.moves[1:3] == [0, 0]
    quarter, half, dead = (year.moves[WEEKS * part // 4] for part in (1, 2, 3))
    assert quarter == pytest.approx(SHARDS / 11, abs=3), "a new server takes its share"
    assert half == pytest.approx(SHARDS / 11, abs=3), "a drained one gives all it has"
    assert dead == pytest.approx(SHARDS / 10, abs=3)
    assert year.least[WEEKS // 2] == half, "all of it had to go"


def test_a_planted_giant_is_told(world: World) -> None:
    bytes_ = np.ones((2, SHARDS))
    bytes_[1, 7] = SHARDS
    year = simulate(World(bytes_, np.ones((2, SHARDS))), servers=SERVERS)
    assert year.oversized == [0, 1]
    assert year.fullest[1] > 4
    assert year.over_best[1] == pytest.approx(1)


def test_a_planted_hot_spot_is_told() -> None:
    queries = np.ones((2, SHARDS))
    queries[1, 7] = SHARDS
    year = simulate(World(np.ones((2, SHARDS)), queries), servers=SERVERS)
    assert HOT > 1
    assert (year.hot[0], year.hot[1]) == (0, 1 / 10)


def test_a_refresh_costs_every_server_and_each_changed_shard() -> None:
    servers = [Server(f"pg{number}", "host=db.example.net dbname=app", UUID(int=number)) for number in range(10)]
    assert refresh_bytes(servers, changed=1) - refresh_bytes(servers[:9], changed=1) > 80
    assert refresh_bytes(servers, changed=5) - refresh_bytes(servers, changed=4) in range(20, 60)
