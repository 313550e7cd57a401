"""The highest timeline seen on each server: tells the living primary from one that comes back."""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Pre-deploy: older programs do not look at the column."""
    op.execute("ALTER TABLE shardkit_catalog.servers ADD COLUMN timeline integer NOT NULL DEFAULT 0 CHECK (timeline >= 0)")


def downgrade() -> None:
    """Forget the timelines."""
    op.execute("ALTER TABLE shardkit_catalog.servers DROP COLUMN timeline")
