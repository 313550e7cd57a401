"""What the planner knows of a shard's tables comes along with a move, and is looked up where it cannot."""

from __future__ import annotations

import psycopg
import pytest

from shardkit import Settings
from shardkit.catalog.overview import current_map
from shardkit.core.names import schema_name
from shardkit.local.databases import fresh_databases
from shardkit.move import run
from shardkit.move.options import MoveOptions
from shardkit.schema.blueprint import Blueprint
from shardkit.schema.bootstrap import initialize

TABLES = """
CREATE TABLE known (id int PRIMARY KEY, word text, tags text[], period int4range);
CREATE INDEX known_half ON known ((id / 2));
CREATE TABLE unknown (id int PRIMARY KEY);
CREATE TABLE related (id int PRIMARY KEY, a int, b int);
CREATE STATISTICS relation (dependencies) ON a, b FROM related;
CREATE TABLE bare (id int PRIMARY KEY);
INSERT INTO known SELECT n, CASE WHEN n % 4 = 0 THEN 'often' ELSE 'w' || n END, ARRAY['x', 'y'], int4range(n, n + 5)
    FROM generate_series(1, 40) n;
INSERT INTO unknown SELECT generate_series(1, 40);
INSERT INTO related SELECT n, n % 5, n % 5 FROM generate_series(1, 40) n
"""
STATISTICS = "SELECT to_jsonb(s) FROM pg_stats s WHERE schemaname = %s AND tablename LIKE 'known%%' ORDER BY tablename, attname"


@pytest.fixture
def cluster(local_cluster):
    with fresh_databases(local_cluster.servers, 2) as databases:
        settings = Settings(catalog_url=databases.catalog_url)
        initialize(settings, servers=databases.servers, shard_count=1, blueprint=Blueprint(TABLES))
        yield settings, databases.servers


def test_the_planner_knows_there_what_it_knew_here(cluster):
    settings, servers = cluster
    place = current_map(settings).placement(0)
    target = next(name for name in servers if name != place.server)
    with psycopg.connect(servers[place.server], autocommit=True) as source:
        if source.info.server_version < 180_000:
            pytest.skip("statistics can be restored from PostgreSQL 18 on")
        schema = schema_name(0, place.epoch)
        source.execute(f"SET search_path TO {schema}")
        source.execute("ANALYZE known, related")
        source.execute("DELETE FROM known WHERE word = 'often'")  # an ANALYZE there would find other statistics
        had = source.execute(STATISTICS, (schema,)).fetchall()
        pages = source.execute("SELECT relpages, reltuples FROM pg_class WHERE oid = 'known'::regclass").fetchone()
    move = run.begin(settings, 0, target, options=MoveOptions(soak=False))
    run.go_on(settings, move.id)
    with psycopg.connect(servers[target], autocommit=True) as there:
        moved = schema_name(0, place.epoch + 1)
        there.execute(f"SET search_path TO {moved}")
        has = there.execute(STATISTICS, (moved,)).fetchall()
        assert there.execute("SELECT relpages, reltuples FROM pg_class WHERE oid = 'known'::regclass").fetchone() == pages
        analyzed = there.execute(
            "SELECT relname FROM pg_stat_user_tables WHERE schemaname = %s AND analyze_count > 0 ORDER BY relname", (moved,)
        )
        assert [name for (name,) in analyzed] == ["related", "unknown"]
        assert there.execute("SELECT count(*) FROM pg_stats_ext WHERE schemaname = %s", (moved,)).fetchone() == (1,)
    assert len(had) == 5  # four columns and an expression
    assert [{**one, "schemaname": moved} for (one,) in had] == [one for (one,) in has]
