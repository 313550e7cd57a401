"""The ledger of migrations over the fleet: runs, and what became of each revision in each shard."""

from __future__ import annotations

from alembic import op

from shardkit.core.names import SHARD_LOCK_CLASS

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Tables of the ledger. The truth is the version row in each shard; this remembers attempts and errors."""
    op.execute("""
        CREATE TABLE shardkit_catalog.fleet_runs (
            run bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            direction text NOT NULL CHECK (direction IN ('up', 'down')),
            target text NOT NULL,
            runner text NOT NULL,
            state text NOT NULL CHECK (state IN ('running', 'done', 'failed', 'killed')) DEFAULT 'running',
            begun_at timestamptz NOT NULL DEFAULT now(),
            ended_at timestamptz,
            shards_done integer,
            shards_behind integer
        )""")
    op.execute("""
        CREATE TABLE shardkit_catalog.fleet_ledger (
            shard integer NOT NULL,
            revision text NOT NULL,
            direction text NOT NULL CHECK (direction IN ('up', 'down')),
            state text NOT NULL CHECK (state IN ('pending', 'running', 'done', 'failed')),
            attempts integer NOT NULL DEFAULT 0,
            error text NOT NULL DEFAULT '',
            run bigint NOT NULL,
            changed_at timestamptz NOT NULL DEFAULT now(),
            CONSTRAINT fleet_ledger_pkey PRIMARY KEY (shard, revision)
        ) WITH (fillfactor = 50)""")
    # A move's journal row comes into being only while no migration holds its shards; from then on migrations see the row.
    op.execute(f"""
        CREATE FUNCTION shardkit_catalog.refuse_migrating() RETURNS trigger LANGUAGE plpgsql AS $$
        DECLARE part integer;
        BEGIN
            FOREACH part IN ARRAY array_remove(ARRAY[NEW.shard, NEW.into_shard], NULL) LOOP
                IF NOT pg_try_advisory_xact_lock({SHARD_LOCK_CLASS}, part) THEN
                    RAISE EXCEPTION 'shard % is being migrated: nothing was done', part
                        USING ERRCODE = 'lock_not_available', HINT = 'shardkit migrate status shows how far it is';
                END IF;
            END LOOP;
            RETURN NEW;
        END $$""")
    op.execute("""
        DO $$ BEGIN
            IF to_regclass('shardkit_catalog.moves') IS NOT NULL THEN
                CREATE TRIGGER refuse_migrating BEFORE INSERT ON shardkit_catalog.moves
                FOR EACH ROW EXECUTE FUNCTION shardkit_catalog.refuse_migrating();
            END IF;
        END $$""")


def downgrade() -> None:
    """Away with the ledger."""
    op.execute("DROP FUNCTION shardkit_catalog.refuse_migrating() CASCADE")
    op.execute("DROP TABLE shardkit_catalog.fleet_ledger, shardkit_catalog.fleet_runs")
