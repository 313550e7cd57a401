"""A shard that holds something of every kind that a schema can hold and a move carries."""

from __future__ import annotations

EVERY_KIND = """
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE DOMAIN posint AS int DEFAULT 3 CONSTRAINT pos CHECK (VALUE > 0);
CREATE TYPE pair AS (a int, b text COLLATE "C"); CREATE TYPE deeper AS (p pair, m mood);
CREATE SEQUENCE "Odd Seq" AS smallint INCREMENT 5 MINVALUE 5 MAXVALUE 500 START 10 CYCLE CACHE 3;
CREATE SEQUENCE unused_by_models; CREATE SEQUENCE down INCREMENT -2 MINVALUE -1000 MAXVALUE 1000 START 900;
CREATE SEQUENCE set_ahead; CREATE SEQUENCE nearly_over AS smallint;
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
SELECT nextval('"Odd Seq"'), nextval('"Odd Seq"'), nextval('down'), setval('set_ahead', 1000000, false),
  setval('nearly_over', 32760);
REFRESH MATERIALIZED VIEW m; REFRESH MATERIALIZED VIEW a_m;
CREATE DOMAIN sorted AS text COLLATE "C" DEFAULT two(1)::text CONSTRAINT filled CHECK (VALUE <> '');
CREATE TABLE of_domain (s sorted PRIMARY KEY WITH (fillfactor = 70), ms mood[], deep deeper, n text)
  WITH (toast.autovacuum_enabled = false, autovacuum_vacuum_scale_factor = 0.01);
CREATE INDEX by_n ON of_domain (lower(n)); ALTER INDEX by_n ALTER COLUMN 1 SET STATISTICS 300;
ALTER TABLE of_domain CLUSTER ON of_domain_pkey; ALTER STATISTICS st SET STATISTICS 200;
INSERT INTO of_domain VALUES ('Ä', '{ok,NULL,sad}', ROW(ROW(1, 'x')::pair, 'happy')), ('z', '{}', NULL);
ALTER DOMAIN sorted ADD CONSTRAINT no_z CHECK (VALUE <> 'z') NOT VALID;
ALTER TABLE of_domain ADD CONSTRAINT has_n CHECK (n IS NOT NULL) NOT VALID;
ALTER TABLE of_domain ADD CONSTRAINT needs_n NOT NULL n NOT VALID;
CREATE RULE sleeping AS ON UPDATE TO of_domain DO INSTEAD NOTHING; ALTER TABLE of_domain DISABLE RULE sleeping;
CREATE VIEW with_default AS SELECT s, n FROM of_domain; ALTER VIEW with_default ALTER n SET DEFAULT 'new';
CREATE MATERIALIZED VIEW no_data AS SELECT 1 / (n - n) AS n FROM m WITH NO DATA;
COMMENT ON RULE sleeping ON of_domain IS 'r'; COMMENT ON CONSTRAINT no_z ON DOMAIN sorted IS 'd';
COMMENT ON COLUMN deeper.p IS 'a'; ALTER TYPE deeper OWNER TO shardkit_operator
"""
NEW_IN_18 = (
    "v int GENERATED ALWAYS AS (id * 3) VIRTUAL,",
    "ALTER TABLE of_domain ADD CONSTRAINT needs_n NOT NULL n NOT VALID;",
)
"""What came with PostgreSQL 18."""
OF_EVERY_RELEASE = EVERY_KIND
for _new in NEW_IN_18:
    assert _new in OF_EVERY_RELEASE
    OF_EVERY_RELEASE = OF_EVERY_RELEASE.replace(_new, "")
