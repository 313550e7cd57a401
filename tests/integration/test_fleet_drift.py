"""Every kind of drift is found in the shard that has it, said as SQL, and gone once that SQL was run."""

from __future__ import annotations

import psycopg
import pytest

from shardkit.schema.drift import check_fleet
from tests.integration.fleetlab import FleetLab

TABLES = """
op.execute('''
CREATE TABLE customers (
    id bigint PRIMARY KEY DEFAULT next_id(), tenant_id text NOT NULL, name text DEFAULT 'nobody', age integer,
    "Shoe size" integer
);
CREATE TABLE orders (
    id bigint PRIMARY KEY DEFAULT next_id(), customer bigint NOT NULL, total numeric(10, 2) CHECK (total >= 0),
    CONSTRAINT orders_customer FOREIGN KEY (customer) REFERENCES customers (id)
);
CREATE INDEX orders_total ON orders (total) WHERE total > 5;
CREATE SEQUENCE tickets AS integer START 5;
CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER touched BEFORE UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION touch();
CREATE VIEW rich AS SELECT id FROM orders WHERE total > 100;
SELECT shardkit.protect('customers')
''')
"""
DRIFTS = {
    "surplus table": "CREATE TABLE surplus (x integer PRIMARY KEY)",
    "missing table": "DROP VIEW rich; DROP TABLE orders",
    "surplus column": "ALTER TABLE orders ADD COLUMN x integer NOT NULL DEFAULT 1",
    "missing column": "ALTER TABLE customers DROP COLUMN name",
    "type": "ALTER TABLE customers ALTER COLUMN age TYPE bigint",
    "default": "ALTER TABLE customers ALTER COLUMN name SET DEFAULT 'x'",
    "missing default": "ALTER TABLE customers ALTER COLUMN name DROP DEFAULT",
    "not null": "ALTER TABLE orders ALTER COLUMN customer DROP NOT NULL",
    "missing index": "DROP INDEX orders_total",
    "other index": "DROP INDEX orders_total; CREATE INDEX orders_total ON orders (total) WHERE total > 6",
    "invalid index": "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'orders_total'::regclass",
    "missing constraint": "ALTER TABLE orders DROP CONSTRAINT orders_total_check",
    "foreign key": "ALTER TABLE orders DROP CONSTRAINT orders_customer",
    "unique": "ALTER TABLE customers ADD UNIQUE (name)",
    "trigger": "DROP TRIGGER touched ON orders",
    "disabled trigger": "ALTER TABLE orders DISABLE TRIGGER touched",
    "policy": "DROP POLICY shardkit_tenant ON customers",
    "other policy": "ALTER POLICY shardkit_tenant ON customers USING (true)",
    "row security": "ALTER TABLE customers DISABLE ROW LEVEL SECURITY",
    "sequence": "DROP SEQUENCE tickets",
    "other sequence": "DROP SEQUENCE tickets; CREATE SEQUENCE tickets AS bigint START 5",
    "type of a column with an odd name": 'ALTER TABLE customers ALTER COLUMN "Shoe size" TYPE bigint',
    "unlogged": "ALTER TABLE orders SET UNLOGGED",
    "view": "CREATE OR REPLACE VIEW rich AS SELECT id FROM orders WHERE total > 101",
}


@pytest.fixture
def lab(shardkit_databases, tmp_path):
    lab = FleetLab(shardkit_databases(2), tmp_path / "tree", shards=4)
    lab.revise("a", TABLES)
    lab.migrate()
    return lab


def test_all_kinds_of_drift_are_found_and_the_sql_repairs_them(lab):
    assert check_fleet(lab.settings, lab.tree) == ([], 4)
    for name, planted in DRIFTS.items():
        with lab.shard(2) as connection:
            connection.execute(planted)
        drifts, _ = check_fleet(lab.settings, lab.tree)
        assert [one.shard for one in drifts] == [2], name
        with lab.shard(2) as connection:
            connection.execute("\n".join(drifts[0].differences))
        left, _ = check_fleet(lab.settings, lab.tree)
        assert left == [], (name, drifts[0].differences, left)


def test_repairing_takes_neither_rows_nor_numbers(lab):
    with lab.shard(2) as connection:
        connection.execute("INSERT INTO customers (id, tenant_id) VALUES (1, 'acme'); INSERT INTO orders (customer) VALUES (1)")
        connection.execute("ALTER TABLE orders SET UNLOGGED; SELECT setval('tickets', 700); ALTER SEQUENCE tickets AS bigint")
    drifts, _ = check_fleet(lab.settings, lab.tree)
    with lab.shard(2) as connection:
        connection.execute("\n".join(drifts[0].differences))
        assert connection.execute("SELECT nextval('tickets'), count(*) FROM orders").fetchone() == (701, 1)
    assert check_fleet(lab.settings, lab.tree)[0] == []


def test_what_is_shared_by_all_shards_has_not_drifted(lab):
    """A login may have a path that leads elsewhere too: how names are told must not depend on it."""
    for url in lab.databases.servers.values():
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE TYPE public.mood AS ENUM ('good', 'bad')")
    lab.revise("b", "op.execute(\"ALTER TABLE orders ADD COLUMN mood public.mood DEFAULT 'good'\")")
    lab.migrate()
    assert check_fleet(lab.settings, lab.tree) == ([], 4)


def test_shard_that_is_behind_has_not_drifted(lab):
    lab.revise("b", "op.add_column('orders', sa.Column('extra', sa.Text))")
    lab.migrate(only=frozenset({1}))
    assert check_fleet(lab.settings, lab.tree) == ([], 4)


def test_missing_schema_is_drift(lab):
    with lab.shard(3) as connection:
        schema = connection.execute("SELECT current_schema()").fetchone()[0]
        connection.execute("ALTER SCHEMA s0003_e1 RENAME TO elsewhere")
    drifts, _ = check_fleet(lab.settings, lab.tree)
    assert [(one.shard, one.schema) for one in drifts] == [(3, schema)]


def test_a_shard_as_reference(lab):
    with lab.shard(0) as connection:
        connection.execute("CREATE TABLE surplus (x integer)")
    drifts, _ = check_fleet(lab.settings, lab.tree, shard=0)
    assert [one.shard for one in drifts] == [1, 2, 3]
    assert "CREATE TABLE surplus ();" in drifts[0].differences


def test_command_line_exits_with_three_and_prints_sql(lab):
    assert lab.run("check").returncode == 0
    with lab.shard(1) as connection:
        connection.execute("DROP INDEX orders_total")
    result = lab.run("check")
    assert result.returncode == 3
    assert "CREATE INDEX orders_total ON orders USING btree (total)" in result.stdout
