"""Which shard goes through which lane, and what a lane does when its server is gone."""

from __future__ import annotations

from uuid import UUID

from shardkit import Settings
from shardkit.core.fleet import Options, Step
from shardkit.core.shardmap import Placement, Server, ShardMap
from shardkit.db.steps import Target
from shardkit.errors import ServerDownError
from shardkit.schema.lanes import Lane, Lanes, Shared
from shardkit.schema.render import Rendered, Segment
from shardkit.settings import Secret

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


def test_server_that_went_away_is_not_tried_for_every_shard_of_a_wave():
    shared = Shared(Settings(catalog_url="host=127.0.0.1"), Options(), None)
    step = Step("b", ("a",), ("b",))
    shared.rendered["b"] = Rendered("b", (Segment(("SELECT 1",)),))
    lane, tries = Lane(shared, "pg1", "", Secret("")), []

    def gone():
        tries.append(1)
        raise ServerDownError("gone")

    lane._open = gone
    lane.work({(step,): [Target(shard, f"s{shard:04d}_e1") for shard in range(200)]}, 1)
    told = [shared.news.get() for _ in range(201)]
    assert [news.trouble.down for news in told[:-1]] == [True] * 200
    assert told[-1] == 1
    assert len(tries) < 20
    lane.work({(step,): [Target(7, "s0007_e1")]}, 2)
    assert len(tries) > 8, "the next wave tries anew"
    lane.close()
