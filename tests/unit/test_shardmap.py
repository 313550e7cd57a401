"""The map is a value: it looks everything up, and nobody can change it under a reader."""

from __future__ import annotations

import dataclasses
from types import MappingProxyType
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardkit.core.hashing import shard_of
from shardkit.core.shardmap import Placement, Route, Server, ShardMap
from shardkit.errors import SettingsError, TenantKeyError, UnknownServerError, UnknownShardError

SERVERS = {name: Server(name, f"postgresql://{name}/app", UUID(int=n)) for n, name in enumerate(("pg1", "pg2"))}


def a_map(**changes) -> ShardMap:
    values = {
        "cluster_id": UUID(int=7),
        "version": 3,
        "shard_count": 16,
        "tenant_type": "str",
        "servers": SERVERS,
        "placements": {n: Placement(f"pg{n % 2 + 1}", n + 1) for n in range(16)},
    }
    return ShardMap(**(values | changes))


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20))
def test_a_tenant_is_routed_by_its_hash(tenant):
    shard = shard_of(tenant, tenant_type="str", shard_count=16)
    epoch = shard + 1
    assert a_map().locate(tenant) == Route(tenant, shard, f"s{shard:04d}_e{epoch}", f"pg{shard % 2 + 1}", epoch)


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 15))
def test_a_pin_wins_over_the_hash(tenant, shard):
    pinned = a_map(tenant_type="int", pins={tenant: shard})
    assert pinned.shard_of(tenant) == shard
    assert pinned.locate(tenant).shard == shard


def test_a_pin_moves_nobody_else():
    plain, pinned = a_map(), a_map(pins={"acme": 5})
    others = [f"tenant{n}" for n in range(200)]
    assert [plain.locate(t) for t in others] == [pinned.locate(t) for t in others]


def test_a_pin_of_the_other_type_is_never_matched():
    by_number = a_map(tenant_type="int", pins={1: 9})
    for wrong in (True, 1.0, "1"):  # True == 1.0 == 1 as keys of a dict
        with pytest.raises(TenantKeyError):
            by_number.locate(wrong)


def test_a_pin_to_a_shard_outside_the_hash_range_works():
    isolated = a_map(placements={**a_map().placements, 16: Placement("pg2", 1, parent=5)}, pins={"acme": 16})
    assert isolated.locate("acme") == Route("acme", 16, "s0016_e1", "pg2", 1)


def test_unknown_names_say_what_is_known():
    with pytest.raises(UnknownShardError, match="shard 99 is not in the map"):
        a_map().route(99)
    with pytest.raises(UnknownServerError, match="known: pg1, pg2"):
        a_map().server("pg9")
    with pytest.raises(UnknownServerError):
        a_map().shards_on("pg9")


def test_shards_on_a_server_are_ascending():
    assert a_map().shards_on("pg1") == [0, 2, 4, 6, 8, 10, 12, 14]


@pytest.mark.parametrize("name", ["servers", "placements", "pins"])
def test_a_map_cannot_be_mutated(name):
    frozen = a_map(pins={"acme": 5})
    table = getattr(frozen, name)
    with pytest.raises(TypeError):
        table["acme"] = 1
    with pytest.raises(AttributeError):
        table.clear()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(frozen, name, {})


@pytest.mark.parametrize("name", ["servers", "placements", "pins"])
def test_a_map_does_not_follow_the_dict_it_was_made_from(name):
    source = dict({"servers": SERVERS, "placements": a_map().placements, "pins": {"acme": 5}}[name])
    frozen = a_map(**{name: source})
    kept = dict(source)
    source.clear()
    assert getattr(frozen, name) == kept


def test_a_thousand_versions_do_not_pile_up_proxies_or_copies():
    frozen = first = a_map(pins={"acme": 5})
    for version in range(4, 1004):
        frozen = dataclasses.replace(frozen, version=version)
    assert frozen.locate("acme").shard == 5
    assert frozen.pins is first.pins
    assert type(frozen.pins) is MappingProxyType


def test_a_map_of_a_newer_hash_is_refused():
    with pytest.raises(SettingsError, match="hash version 2"):
        a_map(hash_version=2)


@pytest.mark.parametrize("wrong", [{"shard_count": 100}, {"shard_count": 0}, {"tenant_type": "uuid"}])
def test_a_map_that_cannot_route_is_refused(wrong):
    with pytest.raises(SettingsError):
        a_map(**wrong)


def test_neither_dsn_nor_pins_are_in_the_repr():
    text = repr(a_map(pins={"acme": 5}))
    assert "postgresql://" not in text
    assert "acme" not in text


def isolated_from(parents: dict[int, int | None]) -> ShardMap:
    return a_map(placements={n: Placement("pg1", 1, parent) for n, parent in parents.items()})


def test_descendants_go_down_every_generation():
    family = isolated_from({1: None, 2: None, 16: 1, 17: 16, 18: 1, 19: 17, 20: 2})
    assert family.descendants(1) == [16, 17, 18, 19]
    assert family.descendants(17) == [19]
    assert family.descendants(19) == []
    assert family.descendants(404) == []


@pytest.mark.parametrize("parents", [{5: 5}, {1: 16, 16: 1}, {1: 3, 2: 1, 3: 2}])
def test_a_loop_of_parents_in_the_catalog_hangs_nobody(parents):
    family = isolated_from(parents)
    first = min(parents)
    assert family.descendants(first) == sorted(set(parents) - {first})


@given(st.dictionaries(st.integers(1, 40), st.integers(0, 39), max_size=40))
def test_descendants_are_the_closure_of_the_parents(raw):
    parents = {0: None, **{child: parent for child, parent in raw.items() if parent < child}}
    family = isolated_from(parents)

    def ancestors(shard):
        while (shard := parents.get(shard)) is not None:
            yield shard

    for shard in parents:
        assert family.descendants(shard) == sorted(n for n in parents if shard in ancestors(n))


def test_maps_with_the_same_content_are_equal():
    assert a_map() == a_map()
    assert a_map() != a_map(version=4)
    assert a_map() != a_map(cluster_id=uuid4())


def test_a_row_may_live_in_the_shard_of_its_birth_and_in_its_family():
    isolated = isolated_from({1: None, 2: None, 16: 1, 17: 16, 18: 1})
    assert isolated.family(1) == [1, 16, 17, 18]
    assert isolated.family(17) == [17, 1, 16, 18]
    assert isolated.family(2) == [2]
    with pytest.raises(UnknownShardError):
        isolated.family(404)
