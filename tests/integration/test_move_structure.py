"""Whatever a shard's schema holds is on the other server after a move, and nothing else. The list is of what others got
wrong."""

from __future__ import annotations

import subprocess

import psycopg
import pytest
from every_kind import EVERY_KIND, OF_EVERY_RELEASE

from shardkit import Settings
from shardkit.core.moving import Step
from shardkit.local.binaries import find_postgres
from shardkit.local.databases import fresh_databases
from shardkit.move import run
from shardkit.move.structure import differences, structure_of
from shardkit.schema.blueprint import Blueprint
from shardkit.schema.bootstrap import initialize


@pytest.fixture(scope="module")
def moved(local_cluster):
    with fresh_databases(local_cluster.servers, 2) as databases:
        settings = Settings(catalog_url=databases.catalog_url)
        with psycopg.connect(databases.catalog_url) as connection:
            kinds = EVERY_KIND if connection.info.server_version >= 180_000 else OF_EVERY_RELEASE
        shardmap = initialize(settings, servers=databases.servers, shard_count=1, blueprint=Blueprint(kinds))
        source = shardmap.placement(0).server
        target = next(name for name in databases.servers if name != source)
        with psycopg.connect(databases.servers[source], autocommit=True) as connection:
            connection.execute("SET search_path = ''")
            before = [
                part._replace(name=rename(part.name), ddl=rename(part.ddl)) for part in structure_of(connection, "s0000_e1")
            ]
            rows = contents(connection, "s0000_e1")
        told = dumped(databases.servers[source], "s0000_e1")
        move = run.begin(settings, 0, target, options=run.MoveOptions(soak=False))
        assert run.go_on(settings, move.id, options=run.MoveOptions(soak=False)).step is Step.FINISHED
        with psycopg.connect(databases.servers[target], autocommit=True) as connection:
            connection.execute("SET search_path = ''")
            after = contents(connection, "s0000_e2")
            yield before, (rows, after), connection, (told, dumped(databases.servers[target], "s0000_e2"))


def rename(text):
    return text.replace("s0000_e1", "s0000_e2")


def dumped(url, schema):
    """What another program has to tell of a schema: each line of pg_dump's, in the new shard's words."""
    command = [find_postgres()["pg_dump"], "--schema-only", "-n", schema, url]
    lines = rename(subprocess.run(command, check=True, capture_output=True, text=True).stdout).splitlines()
    return sorted(line for line in lines if line and not line.startswith(("--", "\\")))


TABLES = ('"Mixed"', "child", "grandchild", "many_to_many", "by_index", "empty_one", "m", "a_m", "of_domain")


def contents(connection, schema):
    connection.execute(f"SET search_path TO {schema}")
    rows = {name: sorted(connection.execute(f"SELECT x::text FROM {name} x").fetchall()) for name in TABLES}
    connection.execute("SET search_path = ''")
    return rows


def test_the_structure_is_the_same(moved):
    before, _, target, _ = moved
    after = structure_of(target, "s0000_e2")
    assert len(after) > 60
    assert differences(before, after) == []
    assert [part for part in before if part not in after] == []


def test_pg_dump_tells_the_same_of_both(moved):
    *_, (before, after) = moved
    assert len(before) > 300
    assert after == before


def test_the_comparison_sees_what_is_missing_more_and_other(moved):
    before, _, target, _ = moved
    after = structure_of(target, "s0000_e2")
    assert differences(before[1:], after)
    assert differences(before, after[1:])
    assert differences([before[0]._replace(ddl="CREATE TYPE other"), *before[1:]], after)


def test_rows_are_the_same_and_no_trigger_fired_for_them(moved):
    _, (before, after), *_ = moved
    assert after == before
    assert len(after['"Mixed"']) == 300


def test_sequences_go_on_past_what_was_given(moved):
    _, _, target, _ = moved
    target.execute("SET search_path TO s0000_e2")
    (new,) = target.execute("INSERT INTO \"Mixed\" (t) VALUES ('new') RETURNING id, ident, g, t").fetchall()
    assert new[0] > 300
    assert new[1] > 100 + 299 * 10
    assert (new[2], new[3]) == (2 * new[0], "new!")
    assert target.execute("SELECT nextval('down')").fetchone()[0] < 900
    assert target.execute("SELECT nextval('unused_by_models')").fetchone()[0] >= 1
    assert target.execute("SELECT nextval('set_ahead')").fetchone()[0] >= 1_000_000
    assert target.execute("SELECT nextval('nearly_over')").fetchone()[0] > 32760
    assert 5 <= target.execute("SELECT nextval('\"Odd Seq\"')").fetchone()[0] <= 500
    with pytest.raises(psycopg.errors.GeneratedAlways):
        target.execute("INSERT INTO \"Mixed\" (t, ident) VALUES ('x', 1)")
    target.execute("SET search_path = ''")


def test_constraints_hold(moved):
    _, _, target, _ = moved
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        target.execute("INSERT INTO s0000_e2.many_to_many VALUES (9999, 1)")
    with pytest.raises(psycopg.errors.UniqueViolation):
        target.execute("INSERT INTO s0000_e2.by_index VALUES ('', 1)")


def test_the_id_sequence_keeps_rising(moved):
    _, _, target, _ = moved
    first, second = (target.execute("SELECT s0000_e2.next_id()").fetchone()[0] for _ in range(2))
    assert 0 < first < second
