"""The ledger of migrations over the fleet: runs, and what became of each revision in each shard."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0001"
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


def downgrade() -> None:
    """Away with the ledger."""
    op.execute("DROP TABLE shardkit_catalog.fleet_ledger, shardkit_catalog.fleet_runs")
