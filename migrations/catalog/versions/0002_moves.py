"""Moves: their journal, and what each of them has made on the servers."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """``lease`` counts the sessions that worked on a move: only the last one may write its journal."""
    op.execute("""
        CREATE TABLE shardkit_catalog.moves (
            id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            shard integer NOT NULL,
            source text NOT NULL,
            target text NOT NULL CHECK (target <> source),
            epoch integer NOT NULL CHECK (epoch > 0),
            of_move bigint REFERENCES shardkit_catalog.moves (id),
            tenant text,
            into_shard integer,
            step text NOT NULL,
            ended boolean NOT NULL DEFAULT false,
            lease integer NOT NULL DEFAULT 0,
            holder text NOT NULL DEFAULT '',
            options jsonb NOT NULL DEFAULT '{}',
            facts jsonb NOT NULL DEFAULT '{}',
            problem text,
            created_at timestamptz NOT NULL DEFAULT now(),
            updated_at timestamptz NOT NULL DEFAULT now()
        )""")
    op.execute("""
        CREATE UNIQUE INDEX moves_one_a_shard ON shardkit_catalog.moves (shard) WHERE NOT ended AND of_move IS NULL""")
    op.execute("CREATE UNIQUE INDEX moves_one_rollback ON shardkit_catalog.moves (of_move) WHERE NOT ended")
    op.execute("""
        CREATE TABLE shardkit_catalog.move_steps (
            move_id bigint NOT NULL REFERENCES shardkit_catalog.moves (id) ON DELETE CASCADE,
            n bigint GENERATED ALWAYS AS IDENTITY,
            step text NOT NULL,
            lease integer NOT NULL,
            at timestamptz NOT NULL DEFAULT clock_timestamp(),
            PRIMARY KEY (move_id, n)
        )""")
    op.execute("""
        CREATE TABLE shardkit_catalog.move_objects (
            move_id bigint NOT NULL REFERENCES shardkit_catalog.moves (id) ON DELETE CASCADE,
            server text NOT NULL,
            kind text NOT NULL CHECK (kind IN ('subscription', 'slot', 'publication', 'schema', 'marks')),
            name text NOT NULL,
            PRIMARY KEY (move_id, server, kind, name)
        )""")


def downgrade() -> None:
    """Away with the journal."""
    op.execute("DROP TABLE shardkit_catalog.move_objects, shardkit_catalog.move_steps, shardkit_catalog.moves")
