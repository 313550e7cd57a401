"""The shard map: cluster, servers, placements, pins."""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Tables of the map. ``changed_in`` is the map version of a row's last change, so that clients fetch only what is new."""
    op.execute("""
        CREATE TABLE shardkit_catalog.cluster (
            singleton boolean CONSTRAINT cluster_pkey PRIMARY KEY DEFAULT true CHECK (singleton),
            cluster_id uuid NOT NULL,
            shard_count integer NOT NULL CHECK (shard_count BETWEEN 1 AND 8192 AND shard_count & (shard_count - 1) = 0),
            tenant_type text NOT NULL CHECK (tenant_type IN ('str', 'int')),
            hash_version integer NOT NULL,
            map_version bigint NOT NULL,
            ready boolean NOT NULL DEFAULT false,
            created_at timestamptz NOT NULL DEFAULT now()
        )""")
    op.execute("""
        CREATE TABLE shardkit_catalog.servers (
            name text CONSTRAINT servers_pkey PRIMARY KEY,
            dsn text NOT NULL,
            server_id uuid NOT NULL CONSTRAINT servers_server_id_key UNIQUE,
            weight double precision NOT NULL CHECK (weight > 0),
            state text NOT NULL CHECK (state IN ('active', 'draining', 'down')),
            replicas text[] NOT NULL,
            changed_in bigint NOT NULL
        )""")
    op.execute("""
        CREATE TABLE shardkit_catalog.placements (
            shard integer PRIMARY KEY CHECK (shard BETWEEN 0 AND 8191),
            server text NOT NULL CONSTRAINT placements_server_fkey REFERENCES shardkit_catalog.servers (name),
            epoch integer NOT NULL CHECK (epoch > 0),
            parent integer REFERENCES shardkit_catalog.placements (shard),
            changed_in bigint NOT NULL
        )""")
    op.execute("CREATE INDEX placements_changed_in ON shardkit_catalog.placements (changed_in)")
    op.execute("""
        CREATE TABLE shardkit_catalog.pins (
            tenant text PRIMARY KEY,
            shard integer CONSTRAINT pins_shard_fkey REFERENCES shardkit_catalog.placements (shard),
            changed_in bigint NOT NULL
        )""")
    op.execute("CREATE INDEX pins_changed_in ON shardkit_catalog.pins (changed_in)")


def downgrade() -> None:
    """Away with the map."""
    op.execute(
        "DROP TABLE shardkit_catalog.pins, shardkit_catalog.placements, shardkit_catalog.servers, shardkit_catalog.cluster"
    )
