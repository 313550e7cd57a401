# Generated from tests/integration/async_/test_isolated.py by tests/generate_sync.py: change that file instead.
"""A tenant in a shard of its own, as programs see it: ids, the cache and fan-outs follow it there and back."""

from __future__ import annotations

from functools import partial

import pytest
from cachelab import Photo, cached_fleet_on
from sqlalchemy import func, select

from shardkit._sync import colour
from shardkit.errors import MoveRefusedError
from shardkit.move import run
from shardkit.move.isolate import begin_isolate
from shardkit.move.options import MoveOptions

KEYS = 3  # of one row: by primary key, by its unique key, and its list


@pytest.fixture(scope="module")
def fleet(local_cluster):
    with cached_fleet_on(local_cluster) as fleet:
        yield fleet


def add(kit, tenant, *, title="first", slug="a"):
    with kit.begin(tenant) as s:
        photo = Photo(user_id=1, slug=slug, title=title)
        s.add(photo)
        s.flush()
        return photo.id


def isolated(kit, fleet, tenant):
    """The tenant is carried out by somebody else, who knows nothing of the cache."""

    def carry():
        settings = fleet.settings(redis_url=None)
        return run.go_on(settings, begin_isolate(settings, tenant, None).id)

    move = colour.in_thread(carry)
    kit.refresh()
    return move


def title_of(kit, tenant, key):
    return (kit.cache.get(Photo, key, tenant=tenant)).title


def test_what_was_cached_before_it_left_is_not_read_when_it_is_back(kit, fleet, neighbours):
    tenant, other = neighbours
    key, theirs = add(kit, tenant), add(kit, other)
    old = kit.locate(tenant).shard
    assert (title_of(kit, tenant, key), title_of(kit, other, theirs)) == ("first", "first")
    move = isolated(kit, fleet, tenant)
    with kit.begin(tenant) as s:
        (s.get(Photo, key)).title = "second"
    assert title_of(kit, tenant, key) == "second"
    back = colour.in_thread(partial(run.begin_rollback, fleet.settings(), move.id))
    with pytest.raises(MoveRefusedError, match="redis_url"):
        colour.in_thread(partial(run.go_on, fleet.settings(), back.id))
    dropped = [kit.cache.forget(tenant, shard=old)]
    colour.in_thread(
        partial(run.go_on, fleet.settings(), back.id, options=MoveOptions(forget=lambda *who: dropped.append(who)))
    )
    assert dropped == [KEYS, (tenant, old), (tenant, move.into_shard)]
    kit.refresh()
    assert kit.locate(tenant).shard == old
    assert title_of(kit, tenant, key) == "second"
    loads = kit.cache.counts.loads
    assert title_of(kit, other, theirs) == "first"
    assert kit.cache.counts.loads == loads, "the neighbour's row stayed in the cache"


def test_a_tenants_name_is_no_pattern(kit, fleet):
    star, plain = "odd*[a-z]?", "oddity"
    keys = {tenant: add(kit, tenant) for tenant in (star, plain)}
    for tenant, key in keys.items():
        title_of(kit, tenant, key)
    shards = {tenant: kit.locate(tenant).shard for tenant in keys}
    assert kit.cache.forget("odd*", shard=shards[plain]) == 0
    assert kit.cache.forget(star, shard=shards[star]) == KEYS


def test_sessions_and_fan_outs_follow(kit, fleet, neighbours):
    tenant, other = neighbours
    key, theirs = add(kit, tenant), add(kit, other)
    count = select(func.count()).select_from(Photo)
    before = kit.fan_out_scalar(count)
    move = isolated(kit, fleet, tenant)
    assert kit.locate(tenant).shard == move.into_shard >= 16
    assert kit.locate_id(key).shard == kit.locate(other).shard == move.shard
    assert (kit.route_of_id(key)).shard == move.into_shard
    assert (kit.route_of_id(theirs)).shard == move.shard
    with kit.session_for_id(key) as s:
        assert s.route.shard in (move.shard, move.into_shard), "nothing was asked yet"
        assert (s.get(Photo, key)).tenant_id == tenant
        assert s.route.shard == move.into_shard
    with kit.session_for_id(theirs) as s:
        assert (s.get(Photo, theirs)).tenant_id == other
    with kit.session_for_id(key, tenant=tenant) as s:
        assert s.get(Photo, key)
    assert kit.fan_out_scalar(count) == before
    assert kit.fan_out_scalar(count, snapshot=True) == before
    with kit.shard(move.shard).session() as s:
        assert s.get(Photo, key) is None, "what is left is hidden from operators too"
    colour.in_thread(partial(run.go_on, fleet.settings(redis_url=None), move.id, "finish"))
    assert kit.fan_out_scalar(count) == before
