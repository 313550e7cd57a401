"""Loads of shards and tenants as programs count them; and what carrying one tenant out of its shard needs in the journal."""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Pre-deploy: older programs neither write the tables nor begin moves of tenants."""
    op.execute("""
        CREATE TABLE shardkit_catalog.loads (
            program uuid NOT NULL,
            at timestamptz NOT NULL DEFAULT now(),
            window_s double precision NOT NULL CHECK (window_s > 0),
            shards integer[] NOT NULL,
            units bigint[] NOT NULL,
            tenants text[] NOT NULL,
            tenant_shards integer[] NOT NULL,
            tenant_units bigint[] NOT NULL,
            tenant_errors bigint[] NOT NULL,
            PRIMARY KEY (at, program)
        )""")
    op.execute("""
        ALTER TABLE shardkit_catalog.moves DROP CONSTRAINT moves_check,
            ADD CONSTRAINT moves_goes_elsewhere CHECK (target <> source OR tenant IS NOT NULL)""")
    op.execute(
        "CREATE UNIQUE INDEX moves_one_into_shard ON shardkit_catalog.moves (into_shard) WHERE NOT ended AND of_move IS NULL"
    )
    op.execute("""
        ALTER TABLE shardkit_catalog.move_objects DROP CONSTRAINT move_objects_kind_check,
            ADD CONSTRAINT move_objects_kind_check CHECK
                (kind IN ('subscription', 'slot', 'publication', 'schema', 'rows', 'curtain', 'marks'))""")


def downgrade() -> None:
    """Forget the loads. Refused while a tenant was carried out of its shard and that is not over."""
    op.execute("""
        ALTER TABLE shardkit_catalog.move_objects DROP CONSTRAINT move_objects_kind_check,
            ADD CONSTRAINT move_objects_kind_check CHECK
                (kind IN ('subscription', 'slot', 'publication', 'schema', 'marks'))""")
    op.execute("DROP INDEX shardkit_catalog.moves_one_into_shard")
    op.execute("""
        ALTER TABLE shardkit_catalog.moves DROP CONSTRAINT moves_goes_elsewhere,
            ADD CONSTRAINT moves_check CHECK (target <> source) NOT VALID""")
    op.execute("DROP TABLE shardkit_catalog.loads")
