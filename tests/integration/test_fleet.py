"""Migrations over every shard of real servers: fast where they can be, honest always, never half."""

from __future__ import annotations

import threading

import psycopg
import pytest

from shardkit.catalog.ledger import hold_shards
from shardkit.core.fleet import Why
from shardkit.core.names import SHARD_LOCK_CLASS, schema_name
from shardkit.db.shards import create_shard
from shardkit.errors import FleetBusyError, MigrationError, NoDowngradeError, TwoHeadsError, UnknownRevisionError
from shardkit.schema.blueprint import from_tree
from shardkit.schema.fleet import Fleet
from tests.integration.fleetlab import FleetLab

VERSION = "SELECT string_agg(version_num, ',') FROM alembic_version"
COLUMNS = """SELECT string_agg(attname, ',' ORDER BY attnum)
FROM pg_attribute WHERE attrelid = 'orders'::regclass AND attnum > 0 AND NOT attisdropped"""
INDEXES = """SELECT string_agg(indexrelid::regclass::text, ',' ORDER BY indexrelid::regclass::text)
FROM pg_index WHERE indrelid = 'orders'::regclass"""
INVALID = "SELECT count(*) FROM pg_index WHERE NOT indisvalid"
CONCURRENT = """
op.execute("UPDATE orders SET note = coalesce(note, '') || 'x'")
with op.get_context().autocommit_block():
    op.create_index("orders_note", "orders", ["note"], unique=True, postgresql_concurrently=True)
op.execute("COMMENT ON TABLE orders IS 'indexed'")
"""


@pytest.fixture
def lab(shardkit_databases, tmp_path):
    lab = FleetLab(shardkit_databases(2), tmp_path / "tree")
    lab.orders()
    return lab


def whys(report):
    return {one.shard: one.why for one in report.behind}


def test_every_shard_gets_every_revision_once(lab):
    lab.revise("b", "op.add_column('orders', sa.Column('extra', sa.Text, server_default='50%'))")
    lab.revise("c", "op.create_index('orders_extra', 'orders', ['extra'])")
    report = lab.migrate()
    assert report.complete
    assert report.done == tuple(range(16))
    assert lab.everywhere(VERSION) == {"c"}
    assert lab.everywhere(COLUMNS) == {"id,note,extra"}
    assert lab.everywhere(INDEXES) == {"orders_extra,orders_pkey"}
    assert lab.ledger() == {(shard, revision): "done" for shard in range(16) for revision in "abc"}
    again = lab.migrate()
    assert (again.complete, again.done, again.current) == (True, (), 16)


def test_revision_that_reads_data_reads_each_shards_own(lab):
    lab.migrate()
    with lab.shard(3) as connection:
        connection.execute("INSERT INTO orders VALUES (1, 'x'), (2, 'y')")
    lab.revise(
        "b",
        "count = op.get_bind().execute(sa.text('SELECT count(*) FROM orders')).scalar_one()\n"
        "op.execute(f\"COMMENT ON TABLE orders IS 'rows: {count}'\")",
    )
    report = lab.migrate()
    assert report.complete
    assert "b" in report.online
    assert lab.ask(3, "SELECT obj_description('orders'::regclass)") == "rows: 2"
    assert lab.ask(4, "SELECT obj_description('orders'::regclass)") == "rows: 0"
    assert lab.everywhere(VERSION) == {"b"}


def test_online_revision_that_fails_leaves_nothing(lab):
    lab.revise(
        "b",
        "op.add_column('orders', sa.Column('extra', sa.Text))\n"
        "if op.get_bind().execute(sa.text('SELECT current_schema()')).scalar_one().startswith('s0005'):\n"
        "    raise RuntimeError('boom on five')",
    )
    report = lab.migrate()
    assert whys(report) == {5: Why.FAILED}
    assert "boom on five" in report.behind[0].detail
    assert lab.ask(5, VERSION) == "a"
    assert lab.ask(5, COLUMNS) == "id,note"
    assert lab.ask(6, COLUMNS) == "id,note,extra"


def test_index_is_built_concurrently_in_every_shard(lab):
    lab.revise("b", CONCURRENT)
    report = lab.migrate()
    assert report.complete
    assert not report.online
    assert lab.everywhere(INDEXES) == {"orders_note,orders_pkey"}
    assert lab.everywhere(INVALID) == {0}
    assert lab.everywhere("SELECT to_regclass('shardkit_progress')") == {None}


def test_failed_concurrent_index_leaves_no_invalid_one_and_goes_on_later(lab):
    lab.migrate()
    with lab.shard(7) as connection:
        connection.execute("INSERT INTO orders VALUES (1, 'same'), (2, 'same')")
    lab.revise("b", CONCURRENT)
    report = lab.migrate()
    assert whys(report) == {7: Why.FAILED}
    assert lab.ask(7, INVALID) == 0
    with lab.shard(7) as connection:
        connection.execute("UPDATE orders SET note = 'other' WHERE id = 2")
    assert lab.migrate().complete
    assert lab.ask(7, INDEXES) == "orders_note,orders_pkey"
    assert lab.ask(7, "SELECT note FROM orders WHERE id = 1") == "samex", "the part before the index ran twice"


def test_one_failing_shard_takes_no_other_down(lab):
    lab.migrate()
    with lab.shard(9) as connection:
        connection.execute("INSERT INTO orders VALUES (1, 'same'), (2, 'same')")
    lab.revise(
        "b", "op.add_column('orders', sa.Column('extra', sa.Text))\nop.create_unique_constraint('one', 'orders', ['note'])"
    )
    report = lab.migrate()
    assert whys(report) == {9: Why.FAILED}
    assert len(report.done) == 15
    assert lab.ask(9, COLUMNS) == "id,note", "half a revision stayed"
    status = lab.fleet.status()
    assert whys(status) == {9: Why.FAILED}
    assert "could not create unique index" in status.behind[0].detail
    with lab.shard(9) as connection:
        connection.execute("DELETE FROM orders WHERE id = 2")
    again = lab.migrate()
    assert (again.complete, again.done) == (True, (9,))


def test_failing_canary_stops_everything(lab):
    lab.migrate()
    lab.revise("b", "op.execute('SELECT 1 / 0')")
    report = lab.migrate(canary=2)
    assert not report.done
    assert {why for shard, why in whys(report).items() if shard > 1} == {Why.WAITING}
    assert lab.everywhere(VERSION) == {"a"}


def test_run_stops_after_too_many_failures(lab):
    lab.migrate()
    lab.revise("b", "op.execute('SELECT 1 / 0')")
    report = lab.migrate(canary=0, max_failures=3, wave=2)
    failed = [shard for shard, why in whys(report).items() if why is Why.FAILED]
    assert 4 <= len(failed) < 16
    assert not report.complete


def test_second_runner_is_refused(lab):
    with lab.catalog() as connection:
        lab.migrate()
        connection.execute("SELECT pg_advisory_lock(%s, 0)", (0x73_6B_66_6C,))
        lab.revise("b", "op.add_column('orders', sa.Column('extra', sa.Text))")
        with pytest.raises(FleetBusyError, match="nothing was done"):
            lab.migrate()
        assert lab.everywhere(VERSION) == {"a"}
        connection.execute("SELECT pg_advisory_unlock_all()")  # at once; that of a session that ends goes when that has ended
    assert lab.migrate().complete


def test_server_that_is_down_does_not_keep_the_others(lab):
    port = "postgresql://postgres@127.0.0.1:1/nowhere"
    lab.migrate()
    lab.revise("b", "op.add_column('orders', sa.Column('extra', sa.Text))")
    broken = Fleet(type(lab.settings)(catalog_url=lab.databases.catalog_url, servers={"pg2": port}), lab.tree)
    report = broken.migrate()
    assert set(whys(report)) == set(lab.map.shards_on("pg2"))
    assert set(whys(report).values()) == {Why.DOWN}
    assert report.done == tuple(lab.map.shards_on("pg1"))
    assert lab.migrate().done == tuple(lab.map.shards_on("pg2"))


def test_shard_that_moves_waits_and_the_others_go_on(lab):
    lab.migrate()
    lab.revise("b", "op.add_column('orders', sa.Column('extra', sa.Text))")
    with lab.catalog() as mover:
        mover.execute("SELECT pg_advisory_lock(%s, 6)", (SHARD_LOCK_CLASS,))
        report = lab.migrate()
        assert whys(report) == {6: Why.MOVING}
        assert lab.ask(6, VERSION) == "a"
        mover.execute("SELECT pg_advisory_unlock_all()")  # at once, as above
    assert lab.migrate().done == (6,)


def test_move_cannot_begin_on_a_shard_that_is_migrated(lab, eventually):
    lab.migrate()
    lab.revise("b", "op.add_column('orders', sa.Column('extra', sa.Text))")
    with lab.shard(0) as reader, lab.catalog() as mover:
        reader.execute("BEGIN; SELECT * FROM orders")
        run = threading.Thread(target=lab.migrate, kwargs={"only": frozenset({0})})
        run.start()
        try:
            eventually(lambda: lab.ledger().get((0, "b")) == "running")
            take = "SELECT pg_try_advisory_lock(%s, 0)"
            assert mover.execute(take, (SHARD_LOCK_CLASS,)).fetchone() == (False,)
        finally:
            reader.execute("COMMIT")
            run.join()
        eventually(
            lambda: mover.execute(take, (SHARD_LOCK_CLASS,)).fetchone() == (True,)
        )  # when the runner's session has ended


MOVES = """
CREATE TABLE IF NOT EXISTS shardkit_catalog.moves (
    id bigint GENERATED ALWAYS AS IDENTITY, shard integer NOT NULL, into_shard integer, source text, target text, epoch integer,
    step text, ended boolean NOT NULL DEFAULT false
);
CREATE OR REPLACE TRIGGER refuse_migrating BEFORE INSERT ON shardkit_catalog.moves
FOR EACH ROW EXECUTE FUNCTION shardkit_catalog.refuse_migrating()"""
OPEN_MOVE = "INSERT INTO shardkit_catalog.moves (shard, source, target, epoch, step) VALUES (%s, 'pg1', 'pg2', 1, 'plan')"


def test_move_that_nobody_works_on_still_keeps_migrations_away(lab):
    lab.migrate()
    lab.revise("b", "op.add_column('orders', sa.Column('extra', sa.Text))")
    with lab.catalog() as catalog:
        catalog.execute(MOVES)
        catalog.execute(OPEN_MOVE, (6,))
        assert whys(lab.migrate()) == {6: Why.MOVING}
        assert whys(lab.fleet.status()) == {6: Why.MOVING}
        catalog.execute("UPDATE shardkit_catalog.moves SET ended = true")
    assert lab.migrate().done == (6,)


def test_journal_row_of_a_move_is_refused_while_its_shard_is_migrated(lab):
    lab.migrate()
    with lab.catalog() as catalog, lab.catalog() as mover:
        catalog.execute(MOVES)
        assert hold_shards(catalog, [3, 4]) == {3, 4}
        with pytest.raises(psycopg.errors.LockNotAvailable, match="shard 4 is being migrated"):
            mover.execute(OPEN_MOVE, (4,))
        mover.execute(OPEN_MOVE, (5,))


WAITS = "SELECT count(*) FROM pg_locks WHERE relation = 'orders'::regclass AND mode = 'AccessExclusiveLock' AND NOT granted"


def test_long_reader_does_not_make_writers_wait_for_longer_than_the_budget(lab, eventually):
    """Writers come through between the tries, while the migration goes on trying: none of them waits for its patience."""
    lab.migrate()
    lab.revise("b", "op.add_column('orders', sa.Column('extra', sa.Text))")
    with lab.shard(2) as reader, lab.shard(2) as writer, lab.shard(2) as watcher:
        reader.execute("BEGIN; SELECT * FROM orders")
        reports = []

        def work():
            reports.append(lab.migrate(only=frozenset({2}), budget_ms=50, patience_s=3600.0))

        run = threading.Thread(target=work)
        run.start()
        try:
            writer.execute("SET statement_timeout = '60s'")  # a thousand budgets: a machine may be slow, a queue is forever
            for number in range(5):
                eventually(lambda: watcher.execute(WAITS).fetchone() == (1,))
                writer.execute("INSERT INTO orders (id) VALUES (%s)", (number,))
                assert run.is_alive(), "it has not given up"
        finally:
            reader.execute("COMMIT")
            run.join()
    assert reports[0].complete


def test_patience_with_a_long_reader_ends(lab):
    lab.migrate()
    lab.revise("b", "op.add_column('orders', sa.Column('extra', sa.Text))")
    with lab.shard(2) as reader:
        reader.execute("BEGIN; SELECT * FROM orders")
        assert whys(lab.migrate(only=frozenset({2}), budget_ms=50, patience_s=0.5))[2] is Why.LOCKED
        reader.execute("COMMIT")
    assert lab.migrate().complete


def test_shard_that_is_made_meanwhile_ends_at_head(lab):
    lab.migrate()
    script = from_tree(lab.tree).sql
    lab.revise("b", "op.add_column('orders', sa.Column('extra', sa.Text))")
    made = []

    def make_one(_done, _total, _failed):
        if not made:
            made.append(16)
            with psycopg.connect(lab.databases.servers["pg1"], autocommit=True) as connection:
                create_shard(connection, 16, schema_name(16, 1), script)
            with lab.catalog() as catalog:
                catalog.execute(
                    "INSERT INTO shardkit_catalog.placements (shard, server, epoch, parent, changed_in) "
                    "VALUES (16, 'pg1', 1, 0, 2)"
                )
                catalog.execute("UPDATE shardkit_catalog.cluster SET map_version = 2")

    report = lab.migrate(progress=make_one)
    assert report.complete
    assert 16 in report.done
    assert lab.ask(16, VERSION) == "b"


def test_new_shards_from_the_tree_are_what_migrated_ones_are(lab, shardkit_databases, tmp_path):
    lab.revise("b", CONCURRENT)
    lab.migrate()
    fresh = FleetLab(shardkit_databases(1), tmp_path / "other", shards=2, blueprint=from_tree(lab.tree))
    for query in (VERSION, COLUMNS, INDEXES):
        assert fresh.everywhere(query) == lab.everywhere(query)


def test_pre_deploy_phase_leaves_what_comes_after_the_deploy(lab):
    lab.revise("b", "op.add_column('orders', sa.Column('extra', sa.Text))", mark='deploy = "pre"')
    lab.revise("c", "op.drop_column('orders', 'note')", mark='deploy = "post"')
    assert lab.migrate(phase="pre").complete
    assert lab.everywhere(COLUMNS) == {"id,note,extra"}
    assert lab.migrate(phase="post").complete
    assert lab.everywhere(VERSION) == {"c"}


def test_downgrade_takes_back_and_refuses_without_code(lab):
    lab.revise("b", "op.add_column('orders', sa.Column('extra', sa.Text))", undo="op.drop_column('orders', 'extra')")
    lab.migrate()
    assert lab.migrate("a", direction="down").complete
    assert lab.everywhere(COLUMNS) == {"id,note"}
    assert lab.migrate("base", direction="down").complete
    assert lab.everywhere("SELECT to_regclass('orders')") == {None}
    lab.revise("c", "op.add_column('orders', sa.Column('more', sa.Text))")
    lab.migrate()
    with pytest.raises(NoDowngradeError, match="revision c"):
        lab.migrate("a", direction="down")
    assert lab.everywhere(VERSION) == {"c"}


def test_dry_run_changes_nothing(lab):
    report = lab.migrate(dry_run=True)
    assert [step.revision for step in report.planned.steps[0]] == ["a"]
    assert lab.everywhere("SELECT to_regclass('alembic_version')") == {None}


def test_only_what_is_asked_for(lab):
    report = lab.migrate(only=frozenset({1, 2, 3}), exclude=frozenset({2}))
    assert report.done == (1, 3)
    assert report.complete
    assert set(whys(lab.fleet.status())) == set(range(16)) - {1, 3}


def test_unknown_revision_two_heads_and_foreign_versions_are_refused(lab):
    with pytest.raises(UnknownRevisionError, match="nope"):
        lab.migrate("nope")
    lab.migrate()
    with lab.shard(4) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'strange'")
    assert whys(lab.migrate()) == {4: Why.LOST}
    lab.revise("b", "pass")
    lab.revise("c", "pass", down="a")
    with pytest.raises(TwoHeadsError, match="b, c"):
        lab.migrate()


@pytest.mark.parametrize(
    "body",
    [
        "op.execute('COMMIT')",
        "op.create_table('t', sa.Column('x', sa.Text, sa.CheckConstraint(\"x <> ' :oops'\")))",
        (
            "op.get_bind().execute(sa.text('SELECT 1')).scalar()\n"
            "with op.get_context().autocommit_block():\n    op.execute('VACUUM')"
        ),
    ],
)
def test_revision_that_could_stay_half_done_is_refused(lab, body):
    lab.revise("b", body)
    with pytest.raises(MigrationError, match="nothing was done"):
        lab.migrate()
    assert lab.everywhere("SELECT to_regclass('alembic_version')") == {None}


def test_percent_signs_in_urls_and_paths(lab, tmp_path):
    odd = tmp_path / "100% sure"
    lab.tree.rename(odd)
    lab.tree = odd
    settings = type(lab.settings)(catalog_url=lab.databases.catalog_url + "?application_name=a%25b%20c")
    lab.revise(
        "b",
        "op.add_column('orders', sa.Column('extra', sa.Text, server_default='50%'))\n"
        "op.create_check_constraint('some', 'orders', \"note NOT LIKE '%\\\\:x %%'\")",
    )
    assert Fleet(settings, odd).migrate().complete
    rule = "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'some'"
    assert "%:x %%" in lab.ask(0, rule)


def test_command_line_says_who_is_behind_and_exits_by_it(lab):
    assert lab.run("status").returncode == 3
    assert lab.run("upgrade").returncode == 2, "without a terminal and --yes nothing may happen"
    done = lab.run("upgrade", "--yes")
    assert (done.returncode, "16 shards migrated" in done.stdout) == (0, True), done.stderr
    assert lab.run("status").returncode == 0
    with lab.shard(11) as connection:
        connection.execute("INSERT INTO orders VALUES (1, 'same'), (2, 'same')")
    lab.revise("b", "op.create_unique_constraint('one', 'orders', ['note'])")
    failed = lab.run("upgrade", "--yes")
    assert failed.returncode == 1
    said = lab.run("status").stdout
    assert "11" in said
    assert "could not create unique index" in said
