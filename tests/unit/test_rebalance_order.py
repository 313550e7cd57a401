"""Which of many planned moves begin together."""

from __future__ import annotations

import threading

from shardkit.core.placement import PlannedMove
from shardkit.move import rebalance
from shardkit.settings import Settings


def test_moves_that_begin_together_have_servers_of_their_own(monkeypatch):
    together, begun = threading.Barrier(2), []

    def one(_settings, planned, *_):
        begun.append(planned.shard)
        together.wait(timeout=300)

    monkeypatch.setattr(rebalance, "_one", one)
    ways = [("pg1", "pg3"), ("pg1", "pg3"), ("pg2", "pg4"), ("pg2", "pg4")]
    planned = tuple(PlannedMove(shard, *way, 1.0) for shard, way in enumerate(ways))
    assert rebalance.carry_out(Settings(catalog_url="dbname=x"), planned, parallel=2) == (4, [])
    assert sorted(begun[:2]) == [0, 2]
