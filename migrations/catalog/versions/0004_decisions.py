"""Decisions of transactions over several shards: recorded before their second phase."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A row is the decision, whoever writes it first; without one a transaction is rolled back when its time is over.

    ``decided_xid`` tells a fan-out whether a decision was made after a moment. Finished rows are kept for a day.
    """
    op.execute("""
        CREATE TABLE shardkit_catalog.decisions (
            txn uuid PRIMARY KEY,
            outcome text NOT NULL CHECK (outcome IN ('commit', 'abort')),
            servers text[] NOT NULL,
            decided_xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
            decided_at timestamptz NOT NULL DEFAULT now(),
            finished_at timestamptz
        )""")
    op.execute("CREATE INDEX decisions_unfinished ON shardkit_catalog.decisions (decided_at) WHERE finished_at IS NULL")
    op.execute("CREATE INDEX decisions_decided_xid ON shardkit_catalog.decisions (decided_xid)")


def downgrade() -> None:
    """Away with them; only when nothing is in doubt."""
    op.execute("DROP TABLE shardkit_catalog.decisions")
