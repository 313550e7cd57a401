"""Whatever a shard's schema holds is on the other server after a move, and nothing else. The list is of what others got
wrong."""

from __future__ import annotations

import psycopg
import pytest

from shardkit import Settings
from shardkit.core.moving import Step
from shardkit.local.databases import fresh_databases
from shardkit.move import run
from shardkit.move.structure import differences, structure_of
from shardkit.schema.blueprint import Blueprint
from shardkit.schema.bootstrap import initialize

RICH = """
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE DOMAIN posint AS int DEFAULT 3 CONSTRAINT pos CHECK (VALUE > 0);
CREATE TYPE pair AS (a int, b text COLLATE "C");
CREATE SEQUENCE "Odd Seq" AS smallint INCREMENT 5 MINVALUE 5 MAXVALUE 500 START 10 CYCLE CACHE 3;
CREATE SEQUENCE unused_by_models; CREATE SEQUENCE down INCREMENT -2 MINVALUE -1000 MAXVALUE 1000 START 900;
CREATE FUNCTION two(x int DEFAULT 7) RETURNS int LANGUAGE sql IMMUTABLE RETURN x * 2;
CREATE TABLE "Mixed" (id serial PRIMARY KEY, ident bigint GENERATED ALWAYS AS IDENTITY (START 100 INCREMENT 10), m mood
  DEFAULT 'ok',
  p posint, pr pair, t text NOT NULL, g int GENERATED ALWAYS AS (id * 2) STORED, v int GENERATED ALWAYS AS (id * 3) VIRTUAL,
  w int, b bytea COMPRESSION pglz, h timestamptz DEFAULT now(), UNIQUE (t), CHECK (id > 0)) WITH (fillfactor = 80);
ALTER TABLE "Mixed" ALTER b SET STORAGE EXTERNAL; ALTER TABLE "Mixed" ALTER t SET STATISTICS 500;
  ALTER TABLE "Mixed" DROP COLUMN w;
CREATE TABLE child (a int, b int, c int CONSTRAINT "Foreign Key" REFERENCES "Mixed" (id) ON DELETE CASCADE DEFERRABLE
  INITIALLY DEFERRED,
  PRIMARY KEY (b, a));
CREATE TABLE grandchild (x uuid PRIMARY KEY DEFAULT gen_random_uuid(), a int, b int,
  FOREIGN KEY (b, a) REFERENCES child (b, a) ON UPDATE SET NULL);
CREATE TABLE many_to_many (left_id int REFERENCES "Mixed" (id), right_id int, PRIMARY KEY (left_id, right_id));
CREATE TABLE by_index (x text COLLATE "C" NOT NULL, y float8); CREATE UNIQUE INDEX by_x ON by_index (x);
ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_x;
CREATE TABLE empty_one (k date PRIMARY KEY);
CREATE INDEX ON child (c) WHERE c > 3; CREATE INDEX "Expr" ON "Mixed" (lower(t)) INCLUDE (h);
CREATE VIEW z_view (one, "Two") WITH (security_invoker = true) AS SELECT id, t FROM "Mixed" WHERE id > two(1);
CREATE VIEW a_view AS SELECT * FROM z_view;
CREATE MATERIALIZED VIEW m AS SELECT count(*) AS n FROM a_view; CREATE UNIQUE INDEX ON m (n);
CREATE MATERIALIZED VIEW a_m AS SELECT n + 1 AS n FROM m;
CREATE FUNCTION trg() RETURNS trigger LANGUAGE plpgsql AS $f$ BEGIN NEW.t := NEW.t || '!'; RETURN NEW; END $f$;
CREATE TRIGGER fires BEFORE INSERT OR UPDATE ON "Mixed" FOR EACH ROW EXECUTE FUNCTION trg();
CREATE TRIGGER sleeps AFTER UPDATE OF t ON "Mixed" FOR EACH ROW WHEN (NEW.id > 5) EXECUTE FUNCTION trg();
ALTER TABLE "Mixed" DISABLE TRIGGER sleeps;
ALTER TABLE "Mixed" ENABLE ROW LEVEL SECURITY;
CREATE POLICY pol ON "Mixed" AS RESTRICTIVE FOR SELECT TO shardkit_app USING (t = current_setting('shardkit.tenant'));
CREATE STATISTICS st ON a, b FROM child;
CREATE FUNCTION of_row("Mixed") RETURNS text LANGUAGE sql BEGIN ATOMIC SELECT $1.t; END;
CREATE PROCEDURE proc() LANGUAGE plpgsql AS $f$ BEGIN NULL; END $f$;
GRANT SELECT ON "Mixed" TO PUBLIC; GRANT INSERT (c) ON child TO shardkit_operator WITH GRANT OPTION;
REVOKE DELETE ON child FROM shardkit_app; REVOKE EXECUTE ON FUNCTION two FROM PUBLIC;
COMMENT ON TABLE "Mixed" IS 'it''s mixed'; COMMENT ON COLUMN "Mixed".t IS 'text'; COMMENT ON INDEX "Expr" IS 'i';
COMMENT ON TRIGGER fires ON "Mixed" IS 't'; COMMENT ON TYPE mood IS 'm'; COMMENT ON CONSTRAINT "Foreign Key" ON child IS 'fk';
COMMENT ON VIEW a_view IS 'v'; COMMENT ON POLICY pol ON "Mixed" IS 'p'; COMMENT ON FUNCTION two IS 'f';
INSERT INTO "Mixed" (t, b, pr, m) SELECT 'zeile ' || n, decode(md5(n::text), 'hex'), ROW(n, 'x'::text)::pair, 'happy'
  FROM generate_series(1, 300) n;
INSERT INTO child SELECT n, n, n FROM generate_series(1, 50) n;
  INSERT INTO grandchild (a, b) SELECT n, n FROM generate_series(1, 50) n;
INSERT INTO by_index VALUES ('Ä', 'NaN'), ('ä', '-Infinity'), ('', 0.1); INSERT INTO many_to_many VALUES (1, 2);
SELECT nextval('"Odd Seq"'), nextval('"Odd Seq"'), nextval('down'); REFRESH MATERIALIZED VIEW m; REFRESH MATERIALIZED VIEW a_m
"""


@pytest.fixture(scope="module")
def moved(local_cluster):
    with fresh_databases(local_cluster.servers, 2) as databases:
        settings = Settings(catalog_url=databases.catalog_url)
        shardmap = initialize(settings, servers=databases.servers, shard_count=1, blueprint=Blueprint(RICH))
        source = shardmap.placement(0).server
        target = next(name for name in databases.servers if name != source)
        with psycopg.connect(databases.servers[source], autocommit=True) as connection:
            connection.execute("SET search_path = ''")
            before = [
                part._replace(name=rename(part.name), ddl=rename(part.ddl)) for part in structure_of(connection, "s0000_e1")
            ]
            rows = contents(connection, "s0000_e1")
        move = run.begin(settings, 0, target, options=run.MoveOptions(soak=False))
        assert run.go_on(settings, move.id, options=run.MoveOptions(soak=False)).step is Step.FINISHED
        with psycopg.connect(databases.servers[target], autocommit=True) as connection:
            connection.execute("SET search_path = ''")
            yield before, rows, connection


def rename(text):
    return text.replace("s0000_e1", "s0000_e2")


TABLES = ('"Mixed"', "child", "grandchild", "many_to_many", "by_index", "empty_one", "m", "a_m")


def contents(connection, schema):
    connection.execute(f"SET search_path TO {schema}")
    rows = {name: sorted(connection.execute(f"SELECT x::text FROM {name} x").fetchall()) for name in TABLES}
    connection.execute("SET search_path = ''")
    return rows


def test_the_structure_is_the_same(moved):
    before, _, target = moved
    after = structure_of(target, "s0000_e2")
    assert len(after) > 60
    assert differences(before, after) == []
    assert [part for part in before if part not in after] == []


def test_the_comparison_sees_what_is_missing_more_and_other(moved):
    before, _, target = moved
    after = structure_of(target, "s0000_e2")
    assert differences(before[1:], after)
    assert differences(before, after[1:])
    assert differences([before[0]._replace(ddl="CREATE TYPE other"), *before[1:]], after)


def test_rows_are_the_same_and_no_trigger_fired_for_them(moved):
    _, rows, target = moved
    assert contents(target, "s0000_e2") == rows
    assert len(rows['"Mixed"']) == 300


def test_sequences_go_on_past_what_was_given(moved):
    _, _, target = moved
    target.execute("SET search_path TO s0000_e2")
    (new,) = target.execute("INSERT INTO \"Mixed\" (t) VALUES ('new') RETURNING id, ident, g, t").fetchall()
    assert new[0] > 300
    assert new[1] > 100 + 299 * 10
    assert (new[2], new[3]) == (2 * new[0], "new!")
    assert target.execute("SELECT nextval('down')").fetchone()[0] < 900
    assert target.execute("SELECT nextval('unused_by_models')").fetchone()[0] >= 1
    assert 5 <= target.execute("SELECT nextval('\"Odd Seq\"')").fetchone()[0] <= 500
    with pytest.raises(psycopg.errors.GeneratedAlways):
        target.execute("INSERT INTO \"Mixed\" (t, ident) VALUES ('x', 1)")
    target.execute("SET search_path = ''")


def test_constraints_hold(moved):
    _, _, target = moved
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        target.execute("INSERT INTO s0000_e2.many_to_many VALUES (9999, 1)")
    with pytest.raises(psycopg.errors.UniqueViolation):
        target.execute("INSERT INTO s0000_e2.by_index VALUES ('', 1)")


def test_the_id_sequence_keeps_rising(moved):
    _, _, target = moved
    first, second = (target.execute("SELECT s0000_e2.next_id()").fetchone()[0] for _ in range(2))
    assert 0 < first < second
