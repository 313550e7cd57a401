"""The tenant hash in SQL is the tenant hash in Python, and PostgreSQL takes it where it is needed."""

from __future__ import annotations

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from shardkit.core.hashing import MAX_KEY_BYTES, TenantType, shard_of, sql_shard_of

COLUMN_TYPE = {"str": "text", "int": "bigint"}
KEYS = {
    "str": st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=60),
    "int": st.integers(-(2**63), 2**63 - 1),
}
EDGES = {
    "str": [
        "a",
        "42",
        "Zürich",
        "東京",
        "\U0001f600",
        "e\u0301",
        "\u00e9",
        "'; drop",
        "\\x00",
        " ",
        "\n",
        "x" * MAX_KEY_BYTES,
    ],
    "int": [0, 1, -1, 42, -42, 2**31, -(2**31) - 1, 2**63 - 1, -(2**63)],
}
COUNTS = (1, 2, 256, 4096, 8192)


@pytest.fixture(scope="module")
def connection(local_cluster):
    with psycopg.connect(local_cluster.servers[0].url, autocommit=True) as open_connection:
        yield open_connection


def shards_in_sql(connection: psycopg.Connection, keys: list[str] | list[int], tenant_type: TenantType) -> list[tuple]:
    """One row a key, in order: its shard for each of COUNTS."""
    columns = [sql.SQL(sql_shard_of("k", tenant_type=tenant_type, shard_count=count)) for count in COUNTS]
    query = sql.SQL("SELECT {} FROM unnest(%s::{}[]) WITH ORDINALITY AS t(k, n) ORDER BY n").format(
        sql.SQL(", ").join(columns), sql.SQL(COLUMN_TYPE[tenant_type])
    )
    return connection.execute(query, [keys]).fetchall()


def shards_in_python(keys: list[str] | list[int], tenant_type: TenantType) -> list[tuple]:
    return [tuple(shard_of(key, tenant_type=tenant_type, shard_count=n) for n in COUNTS) for key in keys]


@pytest.mark.parametrize("tenant_type", ["str", "int"])
def test_sql_and_python_send_the_edges_to_the_same_shards(connection, tenant_type):
    keys = EDGES[tenant_type]
    assert shards_in_sql(connection, keys, tenant_type) == shards_in_python(keys, tenant_type)


@pytest.mark.parametrize("tenant_type", ["str", "int"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None, max_examples=50)
@given(data=st.data())
def test_sql_and_python_send_every_key_to_the_same_shard(connection, tenant_type, data):
    keys = data.draw(st.lists(KEYS[tenant_type], min_size=1, max_size=200))
    assert shards_in_sql(connection, keys, tenant_type) == shards_in_python(keys, tenant_type)


def test_the_comparison_sees_a_rule_that_is_off_by_one_byte(connection):
    """The planted violation: bytes 5 and 6 instead of 6 and 7."""
    wrong = sql.SQL(sql_shard_of("k", tenant_type="int", shard_count=8192).replace(", 6)", ", 5)").replace(", 7)", ", 6)"))
    found = connection.execute(sql.SQL("SELECT {} FROM unnest(%s::bigint[]) AS k").format(wrong), [EDGES["int"]]).fetchall()
    assert [shard for (shard,) in found] != [row[-1] for row in shards_in_python(EDGES["int"], "int")]


@pytest.mark.parametrize("tenant_type", ["str", "int"])
def test_a_publication_takes_the_rule_as_its_row_filter(connection, tenant_type):
    rule = sql.SQL(sql_shard_of("tenant_id", tenant_type=tenant_type, shard_count=256))
    with connection.transaction(force_rollback=True):
        connection.execute(
            sql.SQL("CREATE TABLE filtered (tenant_id {} NOT NULL, id bigint, PRIMARY KEY (tenant_id, id))").format(
                sql.SQL(COLUMN_TYPE[tenant_type])
            )
        )
        connection.execute(sql.SQL("CREATE PUBLICATION isolating FOR TABLE filtered WHERE ({} = 7)").format(rule))
        connection.execute("INSERT INTO filtered VALUES (%s, 1)", [EDGES[tenant_type][0]])
        # An UPDATE is where PostgreSQL refuses a filter on columns that the replica identity does not have.
        connection.execute("UPDATE filtered SET id = 2")
        connection.execute("DELETE FROM filtered")


def test_a_row_filter_outside_the_replica_identity_would_have_been_noticed(connection):
    rule = sql.SQL(sql_shard_of("tenant_id", tenant_type="int", shard_count=256))
    with connection.transaction(force_rollback=True):
        connection.execute("CREATE TABLE filtered (id bigint PRIMARY KEY, tenant_id bigint NOT NULL)")
        connection.execute(sql.SQL("CREATE PUBLICATION isolating FOR TABLE filtered WHERE ({} = 7)").format(rule))
        connection.execute("INSERT INTO filtered VALUES (1, 1)")
        with pytest.raises(psycopg.errors.InvalidColumnReference), connection.transaction():
            connection.execute("UPDATE filtered SET tenant_id = 2")


@pytest.mark.parametrize("tenant_type", ["str", "int"])
def test_an_index_takes_the_rule(connection, tenant_type):
    """Only immutable expressions may be indexed, and only those may ever find misplaced rows reliably."""
    rule = sql.SQL(sql_shard_of("tenant_id", tenant_type=tenant_type, shard_count=8192))
    with connection.transaction(force_rollback=True):
        connection.execute(sql.SQL("CREATE TABLE indexed (tenant_id {})").format(sql.SQL(COLUMN_TYPE[tenant_type])))
        connection.execute(sql.SQL("CREATE INDEX ON indexed (({}))").format(rule))


def test_postgresql_cannot_store_what_python_refuses(connection):
    with pytest.raises(psycopg.DataError):
        connection.execute("SELECT %s::text", ["a\0b"])
    with pytest.raises(psycopg.errors.NumericValueOutOfRange):
        connection.execute("SELECT %s::bigint", [2**63])


def test_the_database_is_utf8_because_it_hashes_text_as_it_stores_it(connection):
    assert connection.info.parameter_status("server_encoding") == "UTF8"
