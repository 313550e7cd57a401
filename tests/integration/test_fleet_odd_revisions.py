"""Revisions written in unusual ways: a shard has one whole or not at all, and no shard notices the one before it."""

from __future__ import annotations

import pytest

from shardkit.core.fleet import Why
from shardkit.db import alone
from shardkit.errors import MigrationError
from shardkit.schema.blueprint import from_tree
from shardkit.schema.bootstrap import initialize
from tests.integration.fleetlab import FleetLab
from tests.integration.test_fleet import COLUMNS, VERSION, whys

SHARDS = 4


@pytest.fixture
def lab(shardkit_databases, tmp_path):
    lab = FleetLab(shardkit_databases(1), tmp_path / "tree", shards=SHARDS)
    lab.orders()
    return lab


@pytest.mark.parametrize(
    "text",
    [
        "SELECT count(*) FROM orders -- how many, before",
        "COMMENT ON TABLE orders IS 'x' -- why",
        "SELECT 1; -- the end;",
    ],
)
def test_comment_at_the_end_of_a_statement_does_not_swallow_what_comes_after_it(lab, text, shardkit_databases):
    lab.revise("b", f"op.add_column('orders', sa.Column('extra', sa.Text))\nop.execute({text!r})")
    report = lab.migrate()
    assert report.complete
    assert lab.everywhere(VERSION) == {"b"}
    assert lab.everywhere(COLUMNS) == {"id,note,extra"}
    fresh = shardkit_databases(1)
    settings = type(lab.settings)(catalog_url=fresh.catalog_url)
    initialize(settings, servers=fresh.servers, shard_count=1, blueprint=from_tree(lab.tree))


@pytest.mark.parametrize(
    "text",
    [
        "ALTER TABLE orders ADD COLUMN one text; COMMIT; ALTER TABLE orders ADD COLUMN note text",
        "-- now\nCOMMIT",
        "/* now /* or */ later */ ROLLBACK",
        "SELECT ';' ; end",
    ],
)
def test_transaction_control_is_found_wherever_it_stands(lab, text):
    lab.migrate()
    lab.revise("b", f"op.execute({text!r})")
    with pytest.raises(MigrationError, match="begins or ends transactions itself"):
        lab.migrate()
    assert lab.everywhere(COLUMNS) == {"id,note"}


def test_words_of_transaction_control_that_are_none_are_let_through(lab):
    lab.revise(
        "b",
        "op.execute('''CREATE FUNCTION f() RETURNS integer LANGUAGE plpgsql AS $x$ BEGIN; RETURN 1; END; $x$;\n"
        "CREATE FUNCTION g() RETURNS integer LANGUAGE sql BEGIN ATOMIC SELECT 1; SELECT CASE WHEN true THEN 2 END; END;\n"
        "COMMENT ON TABLE orders IS '; COMMIT';''')".replace("BEGIN; RETURN", "BEGIN RETURN"),
    )
    assert lab.migrate().complete
    assert lab.ask(0, "SELECT f() + g()") == 3


def test_tabs_in_data_stay_tabs(lab):
    lab.revise("b", "op.execute(\"INSERT INTO orders VALUES (1, 'x\\ty')\")")
    assert lab.migrate().complete
    assert lab.everywhere("SELECT note FROM orders") == {"x\ty"}


def test_what_a_revision_leaves_in_its_session_meets_no_other_shard(lab):
    lab.migrate()
    for shard in range(SHARDS):
        with lab.shard(shard) as connection:
            connection.execute("INSERT INTO orders VALUES (%s, 'x')", (shard,))
    lab.revise(
        "b",
        "op.execute('CREATE TEMP TABLE IF NOT EXISTS kept AS SELECT id FROM orders')\n"
        "op.execute('CREATE TABLE copies AS SELECT id FROM kept')\n"
        "op.execute(\"CREATE TABLE was AS SELECT current_setting('application_name') AS name\")\n"
        "op.execute(\"SET application_name = 'left over'\")",
    )
    assert lab.migrate(canary=0, parallel=1).complete
    assert [lab.ask(shard, "SELECT min(id) FROM copies") for shard in range(SHARDS)] == list(range(SHARDS))
    assert "left over" not in lab.everywhere("SELECT name FROM was")


ALONE = """
with op.get_context().autocommit_block():
    op.execute("UPDATE orders SET note = note || 'x'")
    op.create_index("orders_note", "orders", ["note"], postgresql_concurrently=True)
"""


def test_statement_outside_a_transaction_is_not_done_twice_by_whoever_was_killed_right_after_it(lab, monkeypatch):
    lab.migrate()
    with lab.shard(2) as connection:
        connection.execute("INSERT INTO orders VALUES (1, '')")
    lab.revise("b", ALONE)
    note = alone._note

    def killed(connection, target, step, *, part, begun, had):
        if (target.shard, part, begun) == (2, 1, False):
            raise MigrationError("killed")
        note(connection, target, step, part=part, begun=begun, had=had)

    with monkeypatch.context() as patch:
        patch.setattr(alone, "_note", killed)
        assert whys(lab.migrate()) == {2: Why.FAILED}
    assert lab.migrate().complete
    assert lab.ask(2, "SELECT note FROM orders") == "x"


def test_revision_that_was_changed_after_a_shard_had_half_of_it_is_not_gone_on_with(lab):
    lab.migrate()
    with lab.shard(2) as connection:
        connection.execute("INSERT INTO orders VALUES (1, 'same'), (2, 'same')")
    index = 'with op.get_context().autocommit_block():\n    op.create_index("one", "orders", ["note"], unique=True, {})\n'
    index = index.format("postgresql_concurrently=True")
    lab.revise("b", "op.add_column('orders', sa.Column('extra', sa.Text))\n" + index)
    assert whys(lab.migrate()) == {2: Why.FAILED}
    lab.revise("b", "op.execute('DELETE FROM orders WHERE id = 2')\n" + index, down="a")
    report = lab.migrate()
    assert whys(report) == {2: Why.FAILED}
    assert "was changed" in report.behind[0].detail
    lab.revise(
        "b",
        "op.add_column('orders', sa.Column('extra', sa.Text))\n" + "op.execute('DELETE FROM orders WHERE id = 2')\n" + index,
        down="a",
    )
    assert whys(lab.migrate()) == {2: Why.FAILED}, "what comes after may change, what was done may not"


def test_three_branches_that_were_merged_are_taken_apart_again(lab):
    for name in "bcd":
        add, drop = f"op.add_column('orders', sa.Column('{name}', sa.Text))", f"op.drop_column('orders', '{name}')"
        lab.revise(name, add, undo=drop, down="a")
    lab.revise("m", "pass", down=("b", "c", "d"))
    assert lab.migrate().complete
    assert lab.everywhere(VERSION) == {"m"}
    assert lab.migrate("a", direction="down").complete
    assert lab.everywhere(VERSION) == {"a"}
    assert lab.everywhere(COLUMNS) == {"id,note"}


@pytest.mark.parametrize("name", ["Ärger", '"Zwei Wörter"', "n" * 70])
def test_concurrent_index_may_have_any_name(lab, name):
    lab.revise(
        "b",
        f"with op.get_context().autocommit_block():\n    op.execute('CREATE INDEX CONCURRENTLY {name} ON orders (note)')",
    )
    assert lab.migrate().complete


def test_part_of_a_revisions_name_is_not_that_revision(lab):
    lab.revise("revision_one", "pass")
    lab.migrate()
    with lab.shard(1) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'revision'")
    assert whys(lab.fleet.status()) == {1: Why.LOST}


RIGHTS = "SELECT has_table_privilege('shardkit_app', 'alembic_version', 'UPDATE')"


def test_version_table_is_not_the_programs_to_write_however_it_was_made(lab):
    assert lab.fleet.stamp("base", only=frozenset({0})) == 1
    assert lab.ask(0, RIGHTS) is False
    (lab.tree / "versions" / "a.py").unlink()
    lab.revise("a", "op.get_bind().execute(sa.text('SELECT 1')).scalar()", down=None)
    assert lab.migrate(only=frozenset({1})).online
    assert lab.ask(1, RIGHTS) is False


def test_revision_without_a_downgrade_function_is_refused(lab):
    path = lab.tree / "versions" / "b.py"
    path.write_text("revision = 'b'\ndown_revision = 'a'\ndef upgrade():\n    pass\n")
    lab.migrate()
    with pytest.raises(MigrationError, match="downgrade"):
        lab.migrate("a", direction="down")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("env.py", "from nowhere import Base\n"),
        ("versions/b.py", "revision = 'b'\ndown_revision = 'a'\nraise RuntimeError('at import')\n"),
        ("versions/b.py", "revision = 'b'\ndown_revision = 'a'\n"),
    ],
)
def test_file_of_the_tree_that_cannot_be_run_is_an_error_of_ours(lab, file, text):
    (lab.tree / file).write_text(text)
    with pytest.raises(MigrationError, match="nothing was done"):
        lab.migrate()
