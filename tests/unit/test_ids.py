"""The 64-bit id: what is packed comes out again, ids sort by time, and nothing else passes for an id."""

from __future__ import annotations

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from shardkit.cli import main
from shardkit.core import names
from shardkit.core.ids import EPOCH_MS, MAX_ID, IdParts, check_id, pack, shard_of_id, unpack
from shardkit.db.shard_objects import shard_objects
from shardkit.errors import IdError, NameRejectedError

shards = st.integers(0, 8191)
moments = st.integers(EPOCH_MS + 1, EPOCH_MS + (1 << 40) - 1)
parts = st.builds(IdParts, ms=moments, shard=shards, sequence=st.integers(0, 1023))


@given(parts)
def test_parts_survive_packing(born: IdParts) -> None:
    key = pack(born.ms, shard=born.shard, sequence=born.sequence)
    assert unpack(key) == born
    assert shard_of_id(key) == born.shard
    assert 0 < key <= MAX_ID


@given(st.integers(1, MAX_ID))
def test_every_positive_bigint_survives_unpacking(key: int) -> None:
    ms, shard, sequence = unpack(key)
    assert pack(ms, shard=shard, sequence=sequence) == key


@given(parts, parts)
def test_ids_of_one_shard_sort_by_time_then_sequence(one: IdParts, other: IdParts) -> None:
    other = other._replace(shard=one.shard)
    keys = [pack(born.ms, shard=born.shard, sequence=born.sequence) for born in (one, other)]
    assert (keys[0] < keys[1]) == ((one.ms, one.sequence) < (other.ms, other.sequence))


@pytest.mark.parametrize("decode", [unpack, shard_of_id, check_id])
@pytest.mark.parametrize("bad", [True, None, "7", 7.0, b"7", 0, -1, MAX_ID + 1, -(2**63)])
def test_what_is_no_id_is_refused(decode, bad) -> None:
    with pytest.raises(IdError) as refused:
        decode(bad)
    assert isinstance(refused.value, ValueError)


@pytest.mark.parametrize(
    ("ms", "shard", "sequence"),
    [
        (EPOCH_MS - 1, 0, 0),
        (EPOCH_MS + (1 << 40), 0, 0),
        (EPOCH_MS + 1, 8192, 0),
        (EPOCH_MS + 1, -1, 0),
        (EPOCH_MS + 1, 0, 1024),
        (EPOCH_MS + 1, 0, -1),
        (EPOCH_MS, 0, 0),  # would be 0, which is no id
        (EPOCH_MS + 1.5, 0, 0),
        (EPOCH_MS + 1, True, 0),
        (EPOCH_MS + 1, 0, None),
    ],
)
def test_a_part_without_room_is_refused(ms, shard, sequence) -> None:
    with pytest.raises(IdError):
        pack(ms, shard=shard, sequence=sequence)


@pytest.mark.parametrize("schema", ["s0290_e17", "public", "s0291_e0", 's0291_e1"; DROP SCHEMA public; --'])
def test_a_schema_of_another_shard_gets_no_ids(schema: str) -> None:
    with pytest.raises(NameRejectedError):
        shard_objects(291, schema)


def test_a_shards_own_schema_is_accepted() -> None:
    assert '"s0291_e17"."shardkit_ids"' in shard_objects(291, names.schema_name(291, 17)).as_string()


@pytest.mark.parametrize("given", ["0x5", "-1", "٣", "9" * 20, "9" * 5000])
def test_what_is_no_id_is_wrong_usage_of_the_command(given) -> None:
    result = CliRunner().invoke(main, ["id", "decode", "--", given])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "an id is a whole number above 0" in result.stderr
