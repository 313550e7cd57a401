"""Which shard goes through which lane: each through one, and through the same as long as there are as many."""

from __future__ import annotations

from uuid import UUID

from shardkit import Settings
from shardkit.core.fleet import Options
from shardkit.core.shardmap import Placement, Server, ShardMap
from shardkit.schema.lanes import Lanes, Shared

HOME = UUID(int=1)
SERVERS = {name: Server(name, f"host=127.0.0.1 dbname={name}", UUID(int=n), 1.0) for n, name in enumerate(("pg1", "pg2"))}
MAP = ShardMap(
    cluster_id=HOME,
    version=1,
    shard_count=16,
    tenant_type="str",
    servers=SERVERS,
    placements={shard: Placement("pg1" if shard < 12 else "pg2", 1, None) for shard in range(16)},
)


def spread(lanes):
    return {shard: lane for lane, mine in lanes.spread(MAP, range(16)) for shard in mine}


def test_every_shard_keeps_its_lane_and_some_change_over_when_there_are_more():
    lanes = Lanes(Shared(Settings(catalog_url="host=127.0.0.1"), Options(parallel=4), None))
    narrow = spread(lanes)
    assert spread(lanes) == narrow
    assert {shard: lane.server for shard, lane in narrow.items()} == {s: MAP.placement(s).server for s in range(16)}
    assert len(set(narrow.values())) == 4
    lanes.width = 4
    wide = spread(lanes)
    assert len(set(wide.values())) == 8
    assert set(narrow.values()) < set(wide.values())
    assert sum(narrow[shard] is wide[shard] for shard in wide) == 8
    lanes.close()
