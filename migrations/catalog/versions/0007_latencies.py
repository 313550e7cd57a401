"""How long shards took to answer, as programs measure it: counts by shard and bucket, to be added up."""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Pre-deploy: older programs do not write the table."""
    op.execute("""
        CREATE TABLE shardkit_catalog.latencies (
            program uuid NOT NULL,
            at timestamptz NOT NULL DEFAULT now(),
            shards smallint[] NOT NULL,
            buckets smallint[] NOT NULL,
            times integer[] NOT NULL,
            PRIMARY KEY (at, program)
        )""")


def downgrade() -> None:
    """Forget them."""
    op.execute("DROP TABLE shardkit_catalog.latencies")
