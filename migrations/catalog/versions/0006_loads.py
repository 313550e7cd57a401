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
            shard integer NOT NULL,
            at timestamptz NOT NULL DEFAULT now(),
            window_s double precision NOT NULL CHECK (window_s > 0),
            units bigint NOT NULL CHECK (units >= 0),
            PRIMARY KEY (at, program, shard)
        )""")
    op.execute("""
        CREATE TABLE shardkit_catalog.tenant_loads (
            program uuid NOT NULL,
            tenant text NOT NULL,
            shard integer NOT NULL,
            at timestamptz NOT NULL DEFAULT now(),
            window_s double precision NOT NULL CHECK (window_s > 0),
            units bigint NOT NULL CHECK (units >= 0),
            error bigint NOT NULL CHECK (error BETWEEN 0 AND units),
            PRIMARY KEY (at, program, tenant)
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
    op.execute("DROP TABLE shardkit_catalog.tenant_loads, shardkit_catalog.loads")
