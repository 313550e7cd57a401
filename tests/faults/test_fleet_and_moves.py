"""Migrations and moves of the same shards: a shard is migrated on neither of its copies or, when only one is left, there."""

from __future__ import annotations

import threading

import psycopg
import pytest
from psycopg import sql

from shardkit.core.fleet import Why
from shardkit.core.names import schema_name
from shardkit.errors import MoveBusyError, NotEqualError
from shardkit.move import run
from shardkit.move import work as move_work
from shardkit.move.options import MoveOptions
from tests.integration.fleetlab import FleetLab

SHARD = 1
COLUMNS = "SELECT string_agg(attname, ',' ORDER BY attnum) FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0"


@pytest.fixture
def lab(shardkit_databases, tmp_path):
    lab = FleetLab(shardkit_databases(2), tmp_path / "tree", shards=4)
    lab.orders()
    lab.migrate()
    lab.revise("b", "op.add_column('orders', sa.Column('extra', sa.Text))")
    return lab


def begin(lab, *, soak):
    other = next(name for name in lab.databases.servers if name != lab.place(SHARD).server)
    return run.begin(lab.settings, SHARD, other, options=MoveOptions(soak=soak))


def go_on(lab, move, action="resume"):
    return run.go_on(lab.settings, move, action, options=MoveOptions(give_up_after_s=60, slot_timeout_s=30))


def copies(lab):
    """Columns of the table in each server's copy of the shard's live schema."""
    schema, found = schema_name(SHARD, lab.place(SHARD).epoch), {}
    for name, url in lab.databases.servers.items():
        with psycopg.connect(url, autocommit=True) as connection:
            if connection.execute("SELECT to_regnamespace(%s)", (schema,)).fetchone()[0] is not None:
                found[name] = connection.execute(COLUMNS, (f"{schema}.orders",)).fetchone()[0]
    return found


def test_soaking_shard_is_migrated_on_neither_copy_and_on_the_one_that_is_left_when_the_soak_is_ended(lab, eventually):
    move = begin(lab, soak=True)
    go_on(lab, move.id)
    report = lab.migrate(moves_wait_s=30.0)  # a soak does not end by itself: it is not waited for
    (left,) = report.behind
    assert (left.shard, left.why) == (SHARD, Why.MOVING)
    assert "--finish-soaks" in left.detail
    assert set(copies(lab).values()) == {"id,note"}
    assert len(copies(lab)) == 2
    with lab.shard(SHARD) as live:
        live.execute("INSERT INTO orders VALUES (7, 'while it soaks')")
    with psycopg.connect(lab.databases.servers[move.source], autocommit=True) as follower:
        copied = sql.SQL("SELECT note FROM {} WHERE id = 7").format(sql.Identifier(schema_name(SHARD, 2), "orders"))
        eventually(lambda: follower.execute(copied).fetchone() == ("while it soaks",))
    report = lab.migrate(finish_soak=lambda number: go_on(lab, number, "finish"))
    assert (report.complete, report.done) == (True, (SHARD,))
    assert copies(lab) == {move.target: "id,note,extra"}


def test_soak_that_cannot_be_ended_leaves_its_shard_behind(lab):
    move = begin(lab, soak=True)
    go_on(lab, move.id)

    def busy(_number):
        raise MoveBusyError("planted")

    report = lab.migrate(finish_soak=busy)
    assert [(one.shard, one.why) for one in report.behind] == [(SHARD, Why.MOVING)]
    assert set(copies(lab).values()) == {"id,note"}
    go_on(lab, move.id, "finish")


def test_shard_whose_move_ends_meanwhile_is_migrated_where_it_went_by_the_same_run(lab, eventually):
    move = begin(lab, soak=False)
    reports = []
    migration = threading.Thread(target=lambda: reports.append(lab.migrate(moves_wait_s=120.0)))
    migration.start()
    try:
        eventually(lambda: sum(key[1] == "b" and state == "done" for key, state in lab.ledger().items()) == 3)
        assert set(copies(lab).values()) == {"id,note"}
        go_on(lab, move.id)
    finally:
        migration.join()
    assert (reports[0].complete, len(reports[0].done)) == (True, 4)
    assert copies(lab) == {move.target: "id,note,extra"}


def test_copy_that_was_altered_behind_our_back_breaks_the_follower_and_says_so(lab, monkeypatch):
    """Why a soaking shard is left alone: the rows of the new structure cannot be applied to the old one."""
    monkeypatch.setattr(move_work, "STUCK_S", 1.0)
    move = begin(lab, soak=True)
    go_on(lab, move.id)
    with lab.shard(SHARD) as live:
        live.execute("ALTER TABLE orders ADD COLUMN behind_our_back text")
        live.execute("INSERT INTO orders VALUES (8, 'x', 'y')")
    back = run.begin_rollback(lab.settings, move.id)
    with pytest.raises(NotEqualError, match="structure"):
        go_on(lab, back.id)
    assert lab.ask(SHARD, "SELECT note FROM orders WHERE id = 8") == "x", "the live copy goes on serving"
    go_on(lab, back.id, "abort")
    go_on(lab, move.id, "finish")
    assert list(copies(lab)) == [move.target]
