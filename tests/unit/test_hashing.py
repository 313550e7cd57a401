"""Laws of the tenant hash: total on keys, deaf to everything else, and stable for ever."""

from __future__ import annotations

import enum
from collections import Counter
from hashlib import md5

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardkit.core.hashing import (
    MAX_KEY_BYTES,
    MAX_SHARDS,
    check_shard_count,
    key_bytes,
    shard_of,
    sql_shard_of,
    tenant_from_text,
)
from shardkit.errors import SettingsError, TenantKeyError

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=200)
INTS = st.integers(-(2**63), 2**63 - 1)
COUNTS = st.integers(0, 13).map(lambda bits: 2**bits)


@pytest.mark.parametrize(
    ("tenant", "tenant_type", "shard"),
    # Written down once, from PostgreSQL: if one of these changes, every deployed cluster has lost its tenants.
    [
        ("acme", "str", 7822),
        ("Zürich", "str", 2962),
        ("東京", "str", 6639),
        ("42", "str", 4903),
        (42, "int", 7679),
        (-1, "int", 1391),
        (0, "int", 3584),
        (2**63 - 1, "int", 3455),
        (-(2**63), "int", 1293),
    ],
)
def test_the_hash_of_a_key_never_changes(tenant, tenant_type, shard):
    assert shard_of(tenant, tenant_type=tenant_type, shard_count=8192) == shard


@given(TEXT, COUNTS)
def test_shard_is_the_masked_first_eight_bytes_of_md5(tenant, count):
    first8 = int.from_bytes(md5(tenant.encode(), usedforsecurity=False).digest()[:8], "big")
    assert shard_of(tenant, tenant_type="str", shard_count=count) == first8 & (count - 1)


@given(INTS)
def test_int_keys_are_eight_signed_big_endian_bytes(tenant):
    raw = key_bytes(tenant, "int")
    assert len(raw) == 8
    assert int.from_bytes(raw, "big", signed=True) == tenant


@given(TEXT, TEXT)
def test_different_text_is_never_folded_to_the_same_bytes(a, b):
    assert (key_bytes(a, "str") == key_bytes(b, "str")) == (a == b)


@given(st.one_of(TEXT.map(lambda t: (t, "str")), INTS.map(lambda n: (n, "int"))), st.integers(0, 12))
def test_doubling_sends_a_shard_to_itself_or_to_itself_plus_n(key, bits):
    tenant, tenant_type = key
    before = shard_of(tenant, tenant_type=tenant_type, shard_count=2**bits)
    after = shard_of(tenant, tenant_type=tenant_type, shard_count=2 ** (bits + 1))
    assert after in (before, before + 2**bits)


@pytest.mark.parametrize("tenant_type", ["str", "int"])
def test_tenants_spread_evenly(tenant_type):
    keys = range(64_000) if tenant_type == "int" else map(str, range(64_000))
    found = Counter(shard_of(key, tenant_type=tenant_type, shard_count=64) for key in keys)
    assert len(found) == 64
    assert max(found.values()) < 1.15 * 1000  # binomial: 1000 ± 31, so this is nearly five sigma


class Colour(enum.StrEnum):
    RED = "red"


class Big(int):
    pass


@pytest.mark.parametrize("tenant_type", ["str", "int"])
@pytest.mark.parametrize(
    "wrong",
    [True, False, 1.0, float("nan"), None, b"acme", bytearray(b"x"), (), [], {}, object(), Colour.RED, Big(7), str, ""],
    ids=lambda wrong: repr(wrong).partition(" at 0x")[0],
)
def test_what_is_not_a_key_is_refused(wrong, tenant_type):
    with pytest.raises(TenantKeyError):
        shard_of(wrong, tenant_type=tenant_type, shard_count=256)


def test_a_key_is_never_converted():
    with pytest.raises(TenantKeyError, match="never converted"):
        shard_of("42", tenant_type="int", shard_count=256)
    with pytest.raises(TenantKeyError, match="never converted"):
        shard_of(42, tenant_type="str", shard_count=256)


@pytest.mark.parametrize(
    ("tenant", "why"),
    [
        ("", "empty"),
        ("x" * (MAX_KEY_BYTES + 1), "at most 1024 bytes"),
        ("é" * (MAX_KEY_BYTES // 2 + 1), "at most 1024 bytes"),
        ("a\0b", "NUL"),
        ("\ud800", "Unicode"),
    ],
    ids=["empty", "long", "long in bytes only", "nul", "surrogate"],
)
def test_text_postgresql_could_not_store_is_refused(tenant, why):
    with pytest.raises(TenantKeyError, match=why) as caught:
        key_bytes(tenant, "str")
    assert tenant == "" or tenant not in str(caught.value), "a tenant's key must not get into a log through an error"


@given(st.one_of(st.integers(max_value=-(2**63) - 1), st.integers(min_value=2**63)))
def test_an_int_beyond_64_bits_is_refused(tenant):
    with pytest.raises(TenantKeyError, match="64 bits"):
        key_bytes(tenant, "int")


def test_the_longest_key_is_taken():
    assert len(key_bytes("é" * (MAX_KEY_BYTES // 2), "str")) == MAX_KEY_BYTES


@given(COUNTS)
def test_powers_of_two_are_shard_counts(count):
    assert check_shard_count(count) == count


@given(st.integers().filter(lambda n: n not in {2**bits for bits in range(14)}))
def test_other_numbers_are_no_shard_counts(count):
    with pytest.raises(SettingsError, match="power of two"):
        check_shard_count(count)


@pytest.mark.parametrize("count", [True, 256.0, "256", None])
def test_other_types_are_no_shard_counts(count):
    with pytest.raises(SettingsError):
        check_shard_count(count)


def test_the_sql_refuses_a_count_that_cannot_be():
    with pytest.raises(SettingsError):
        sql_shard_of("tenant_id", tenant_type="str", shard_count=MAX_SHARDS * 2)


@given(st.one_of(TEXT, INTS))
def test_key_written_as_text_is_read_back_in_its_type(key):
    assert tenant_from_text(str(key), "int" if isinstance(key, int) else "str") == key


@pytest.mark.parametrize(
    "text", ["", " 7", "7 ", "+7", "0x7", "7.0", "1_000", "\u0667", "acme", "9223372036854775808", "--7", "7\n"]
)
def test_text_that_is_no_int_key_is_refused(text):
    with pytest.raises(TenantKeyError):
        tenant_from_text(text, "int")
