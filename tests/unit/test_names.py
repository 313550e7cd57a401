"""Names are the border between a tenant and SQL: only what we built parses, and nothing odd is built."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardkit.core.names import check_server_name, parse_schema, schema_name
from shardkit.errors import NameRejectedError

SHARDS = st.integers(0, 99_999)
EPOCHS = st.integers(1, 999_999_999)


@given(SHARDS, EPOCHS)
def test_a_schema_name_says_its_shard_and_epoch(shard, epoch):
    assert parse_schema(schema_name(shard, epoch)) == (shard, epoch)


@given(SHARDS, EPOCHS)
def test_a_schema_name_fits_postgresql_and_needs_no_quotes(shard, epoch):
    name = schema_name(shard, epoch)
    assert len(name) <= 63
    assert name.isascii()
    assert name.isidentifier()
    assert name == name.lower()


def test_schema_names_sort_by_shard():
    assert schema_name(291, 17) == "s0291_e17"
    assert [schema_name(n, 1) for n in range(8192)] == sorted(schema_name(n, 1) for n in range(8192))


@given(st.text())
def test_whatever_parses_is_exactly_what_we_would_build(text):
    found = parse_schema(text)
    assert found is None or schema_name(*found) == text


@pytest.mark.parametrize(
    "name",
    [
        "",
        "public",
        "s291_e17",
        "s0291_e0",
        "s0291_e017",
        "s00291_e17",
        "S0291_E17",
        "s0291_e17 ",
        "s0291_e17\n",
        "s0291_e",
        "s0291",
        "xs0291_e17",
        "s0291_e17;drop",
        "s\u0660291_e17",
        "s-001_e1",
        "s0291_e1_000",
    ],
)
def test_names_of_others_are_not_ours(name):
    assert parse_schema(name) is None


@pytest.mark.parametrize(
    ("shard", "epoch"),
    [
        (-1, 1),
        (100000, 1),
        (0, 0),
        (0, -1),
        (0, 1000000000),
        (1.0, 1),
        (1, 1.0),
        ("1", 1),
        (1, "1"),
        (None, 1),
        (True, 1),
        (1, True),
        ("0; drop schema public", 1),
    ],
)
def test_nothing_but_two_integers_becomes_a_schema(shard, epoch):
    with pytest.raises(NameRejectedError):
        schema_name(shard, epoch)


@given(st.from_regex(r"[a-z][a-z0-9_-]{0,30}", fullmatch=True))
def test_plain_server_names_are_taken(name):
    assert check_server_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "1pg",
        "-pg",
        "_pg",
        "Pg",
        "pg 1",
        "pg.1",
        "pg/1",
        "pg'1",
        'pg"1',
        "pg;1",
        "pg1\n",
        "pé",
        "a" * 32,
        "pg\x00",
        None,
        7,
        b"pg1",
    ],
    ids=repr,
)
def test_odd_server_names_are_refused(name):
    with pytest.raises(NameRejectedError, match="cannot name a server"):
        check_server_name(name)
