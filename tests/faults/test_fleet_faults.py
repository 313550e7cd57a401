"""A migration of the fleet that is killed: run again, only what is behind is done, and no shard is half."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import threading
from collections import Counter

import psycopg
import pytest

from shardkit.core.fleet import Why
from shardkit.core.names import FLEET_LOCK_CLASS, schema_name
from tests.integration.fleetlab import FleetLab

SHARDS = 32
LEFT = "SELECT to_regclass('shardkit_progress')::text"
STATE = """
SELECT coalesce((SELECT string_agg(version_num, ',') FROM alembic_version), '') || ' ' || coalesce((
    SELECT string_agg(attname, ',' ORDER BY attnum) FROM pg_attribute
    WHERE attrelid = to_regclass('orders') AND attnum > 0 AND NOT attisdropped), '') || ' ' || coalesce((
    SELECT string_agg(relname || CASE WHEN indisvalid THEN '' ELSE '!' END, ',' ORDER BY relname)
    FROM pg_index JOIN pg_class ON oid = indexrelid WHERE indrelid = to_regclass('orders')), '')"""


@pytest.fixture
def shards():
    return SHARDS


@pytest.fixture
def lab(shardkit_databases, tmp_path, shards):
    return FleetLab.with_orders(shardkit_databases(2), tmp_path / "tree", shards=shards)


def done_rows(lab) -> int:
    return sum(state == "done" for state in lab.ledger().values())


GATE = 77
WAITS = """
DO $$ BEGIN
  WHILE current_schema() = '{schema}' AND NOT pg_try_advisory_xact_lock({gate}) LOOP PERFORM pg_sleep(0.02); END LOOP;
END $$"""


def waits(shards):
    """A step that the last of *shards* comes through only when its gate is open."""
    return f"op.execute({WAITS.format(schema=schema_name(shards - 1, 1), gate=GATE)!r})\n"


@contextlib.contextmanager
def closed_gate(lab, shards):
    """No run comes to its end meanwhile, however long this process is stalled; yields whether one waits at the gate."""
    waiting = """SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND state = 'active'
                                AND pid <> pg_backend_pid() AND query LIKE '%pg_try_advisory_xact_lock%')"""
    with lab.shard(shards - 1) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", (GATE,))
        yield lambda: connection.execute(waiting).fetchone()[0]


def kill_once(lab, eventually, waiting, *, after: int, wave: int = 8) -> bool:
    """Start a run and kill it when *after* more ledger rows are done or it waits at the gate; False if it came to its end."""
    before = done_rows(lab)
    with lab.started("upgrade", "--yes", "--wave", str(wave), "--parallel", "2", "--batch", "4") as process:
        eventually(lambda: process.poll() is not None or done_rows(lab) >= before + after or waiting())
        ended = process.poll() is not None
        process.send_signal(signal.SIGKILL)
        process.wait()
    eventually(lambda: not waiting() and not held(lab))  # its sessions end a moment after it
    return not ended


def held(lab):
    """Whether anybody has the lease."""
    with lab.catalog() as catalog:
        lease = """SELECT FROM pg_locks JOIN pg_database d ON d.oid = database
                   WHERE locktype = 'advisory' AND classid = %s AND datname = current_database()"""
        return catalog.execute(lease, (FLEET_LOCK_CLASS,)).fetchone() is not None


@pytest.mark.parametrize("shards", [SHARDS, pytest.param(1024, marks=pytest.mark.slow)])
def test_killed_three_times_and_run_again(lab, eventually, shards):
    slowly = waits(shards) + "op.execute('SELECT pg_sleep(0.02)')"
    lab.revise("b", "op.add_column('orders', sa.Column('extra', sa.Text))\n" + slowly)
    lab.revise("c", "op.create_index('orders_extra', 'orders', ['extra'])\n" + slowly)
    whole = {"a id,note orders_pkey", "b id,note,extra orders_pkey", "c id,note,extra orders_extra,orders_pkey"}
    draw = random.Random(7)
    most, wave = shards * 12 // SHARDS, shards // 4
    with closed_gate(lab, shards) as waiting:
        killed = [kill_once(lab, eventually, waiting, after=draw.randrange(1, most), wave=wave) for _ in range(3)]
    counts = Counter(state for (_, revision), state in lab.ledger().items() if revision != "a")
    assert all(killed), "the run was over before it could be killed: nothing was tested"
    assert lab.everywhere(STATE) <= whole, "a shard is half done"
    assert lab.fleet.status().behind
    report = lab.migrate()
    assert report.complete
    assert 0 < len(report.done) < shards, "what was done was done again, or nothing was left"
    print(f"{shards} shards, after three kills: {dict(counts)}; the last run did {len(report.done)} in {report.seconds:.1f} s")
    assert lab.everywhere(STATE) == {"c id,note,extra orders_extra,orders_pkey"}
    assert Counter(lab.ledger().values()) == {"done": 3 * shards}
    with lab.catalog() as connection:
        states = [row[0] for row in connection.execute("SELECT state FROM shardkit_catalog.fleet_runs ORDER BY run")]
    assert states == ["done", "killed", "killed", "killed", "done"]


def test_killed_while_indexes_are_built_concurrently(lab, eventually):
    lab.revise(
        "b",
        "op.add_column('orders', sa.Column('extra', sa.Text))\n" + waits(SHARDS) + "with op.get_context().autocommit_block():\n"
        "    op.create_index('orders_extra', 'orders', ['extra'], postgresql_concurrently=True)\n"
        "    op.execute('SELECT pg_sleep(0.02)')\n"
        "op.add_column('orders', sa.Column('more', sa.Text))",
    )
    with lab.shard(5) as reader:  # an old transaction, for which the build in this shard's database must wait
        reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")
        with lab.started("upgrade", "--yes", "--only", "5") as process:
            building = "SELECT count(*) FROM pg_index WHERE NOT indisvalid AND indrelid = 'orders'::regclass"
            eventually(lambda: process.poll() is not None or lab.ask(5, building) == 1)
            assert process.poll() is None
            process.send_signal(signal.SIGKILL)
            process.wait()
        orphan = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'CREATE INDEX CONC%'"
        eventually(lambda: lab.ask(5, orphan) == 0)
        assert lab.ask(5, building) == 1, "nothing to clean up: nothing was tested"
        reader.execute("COMMIT")
    with closed_gate(lab, SHARDS) as waiting:
        killed = kill_once(lab, eventually, waiting, after=5)
    assert killed
    assert lab.migrate().complete
    assert lab.everywhere(STATE) == {"b id,note,extra,more orders_extra,orders_pkey"}
    assert lab.everywhere(LEFT) == {None}


def test_planted_half_shard_is_seen(lab):
    with lab.shard(3) as connection:
        connection.execute("ALTER TABLE orders ADD COLUMN extra text")
    assert not lab.everywhere(STATE) <= {"a id,note orders_pkey"}


def test_broken_connections_are_made_again(lab, eventually):
    lab.revise("b", "op.add_column('orders', sa.Column('extra', sa.Text))\nop.execute('SELECT pg_sleep(0.05)')")
    reports = []
    run = threading.Thread(target=lambda: reports.append(lab.migrate(parallel=2, batch=1)))
    run.start()
    try:
        with psycopg.connect(lab.databases.servers["pg1"], autocommit=True) as connection:
            cut = (
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() "
                "AND pid <> pg_backend_pid() AND query LIKE %s AND state = 'active'"
            )
            eventually(lambda: connection.execute(cut, ("%pg_sleep(0.05)%",)).fetchone()[0])
    finally:
        run.join()
    assert reports[0].complete
    assert lab.everywhere(STATE) == {"b id,note,extra orders_pkey"}


def test_server_that_goes_away_in_the_middle_is_named_and_the_rest_is_done(lab, eventually, local_cluster):
    """Its database is gone for new connections, and the old ones are cut."""
    lab.revise("b", "op.add_column('orders', sa.Column('extra', sa.Text))\nop.execute('SELECT pg_sleep(0.05)')")
    name = lab.databases.servers["pg2"].rpartition("/")[2].partition("?")[0]
    reports = []
    run = threading.Thread(target=lambda: reports.append(lab.migrate(parallel=1, batch=1)))
    with psycopg.connect(local_cluster.servers[1].url_of("postgres"), autocommit=True) as connection:
        allow = psycopg.sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
        run.start()
        try:
            eventually(
                lambda: (
                    "done" in [s for (shard, r), s in lab.ledger().items() if r == "b" and shard in lab.map.shards_on("pg2")]
                )
            )
            connection.execute(allow.format(psycopg.sql.Identifier(name), psycopg.sql.SQL("false")))
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
            run.join()
        finally:
            connection.execute(allow.format(psycopg.sql.Identifier(name), psycopg.sql.SQL("true")))
            run.join()
    report = reports[0]
    assert {one.why for one in report.behind} == {Why.DOWN}
    assert {one.server for one in report.behind} == {"pg2"}
    assert set(lab.map.shards_on("pg1")) <= set(report.done)
    assert lab.migrate().complete


@pytest.mark.slow
@pytest.mark.parametrize("shards", [256])
def test_revision_that_fails_on_shard_17_of_256_takes_no_other_down(lab, shards):
    with lab.shard(17) as connection:
        connection.execute("INSERT INTO orders VALUES (1, 'same'), (2, 'same')")
    lab.revise("b", "op.create_unique_constraint('one', 'orders', ['note'])")
    failed = lab.run("upgrade", "--yes", "--json")
    told = json.loads(failed.stdout)
    assert (failed.returncode, len(told["migrated"])) == (1, shards - 1)
    assert [(one["shard"], one["why"]) for one in told["behind"]] == [(17, "failed")]
    assert lab.ask(17, STATE) == "a id,note orders_pkey"
    with lab.shard(17) as connection:
        connection.execute("DELETE FROM orders WHERE id = 2")
    assert lab.migrate().done == (17,)
