"""The revisions make what the models say: nothing is left for another one."""

from __future__ import annotations

import shutil

import psycopg
import pytest
from psycopg import sql

from photos.cluster import TREE
from shardkit import Settings, ShardKit
from shardkit.schema.revise import new_revision


@pytest.fixture
def missing(databases, tmp_path):
    """What Alembic finds missing in a shard, as the lines of a revision's upgrade()."""
    settings = Settings(catalog_url=databases.catalog_url)

    def ask(shard):
        tree = shutil.copytree(TREE, tmp_path / f"tree{shard}", ignore=shutil.ignore_patterns("__pycache__"))
        text = new_revision(tree, "what is missing", settings=settings, shard=shard).read_text("utf-8")
        body = text.partition("def upgrade()")[2].partition("def downgrade()")[0]
        return [line.strip() for line in body.splitlines()[1:] if line.strip() and not line.strip().startswith("#")]

    return ask


def test_the_revisions_make_what_the_models_say(databases, missing):
    assert missing(0) == ["pass"]
    with ShardKit(settings=Settings(catalog_url=databases.catalog_url)) as kit:
        route = kit.map.route(1)
    with psycopg.connect(databases.servers[route.server], autocommit=True) as server:
        server.execute(sql.SQL("DROP INDEX {}").format(sql.Identifier(route.schema, "follows_of_the_famous")))
        try:
            assert any("follows_of_the_famous" in line for line in missing(1)), "so that it would be seen"
        finally:
            table = sql.Identifier(route.schema, "follows")
            server.execute(sql.SQL("CREATE INDEX follows_of_the_famous ON {} (tenant_id, famous)").format(table))
