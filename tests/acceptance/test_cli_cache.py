"""``shardkit cache``: what the servers say, rows that are stale, transactions that have not been marked."""

from __future__ import annotations

import json

import psycopg
import pytest
from cachelab import Photo

from shardkit import Settings, ShardKit
from shardkit.schema.blueprint import from_models
from shardkit.schema.bootstrap import initialize
from tests.acceptance.program import ROOT, refused, run, settings_file

MODELS = "cachelab:Base"
TENANT = "acme"


@pytest.fixture
def databases(shardkit_databases):
    return shardkit_databases(1)


@pytest.fixture
def config(databases, local_cluster, tmp_path):
    initialize(
        Settings(catalog_url=databases.catalog_url), servers=databases.servers, shard_count=2, blueprint=from_models(MODELS)
    )
    path = settings_file(tmp_path / "shardkit.toml", databases)
    path.write_text(f'redis_url = "{local_cluster.redis_url}"\n' + path.read_text("utf-8"), "utf-8")
    return path


@pytest.fixture
def place():
    return {"cwd": ROOT, "env": {"PYTHONPATH": f"{ROOT}/tests/integration"}}


@pytest.fixture
def kit(config):
    with ShardKit(settings=Settings.from_toml(config)) as kit:
        yield kit


@pytest.fixture
def key(kit):
    with kit.begin(TENANT) as s:
        photo = Photo(user_id=1, slug="a", title="first")
        s.add(photo)
        s.flush()
        return photo.id


def test_stats_say_what_redis_says(config, kit, key):
    kit.cache.get_row(Photo, key, tenant=TENANT)
    done = run("cache", "stats", "--config", config)
    assert "noeviction  evicted 0" in done.stdout
    found = json.loads(run("cache", "stats", "--json", "--config", config).stdout)
    assert (len(found["servers"]), found["undrained"], found["warnings"]) == (1, 0, [])


def test_verify_names_a_stale_row(config, databases, place, kit, key):
    kit.cache.get_row(Photo, key, tenant=TENANT)
    done = run("cache", "verify", "--config", config, "--models", MODELS, **place)
    assert "Photo  1 compared, 0 changing, 0 stale" in done.stdout
    route = kit.locate(TENANT)
    with psycopg.connect(databases.servers[route.server]) as psql:
        psql.execute(f"UPDATE {route.schema}.photos SET title = 'by hand'")
    done = run("cache", "verify", "--config", config, "--models", MODELS, code=1, **place)
    assert f"stale: photos::{TENANT}:{key}" in done.stderr
    found = json.loads(run("cache", "verify", "--json", "--config", config, "--models", MODELS, code=1, **place).stdout)
    assert found["Photo"] == {"checked": 1, "changing": 0, "stale": [f"photos::{TENANT}:{key}"]}


def test_drain_marks_what_a_dead_writer_left(config, kit, key):
    kit.cache.get_row(Photo, key, tenant=TENANT)
    with (
        ShardKit(settings=Settings.from_toml(config, redis_url="redis://127.0.0.1:1/0")) as cut_off,
        cut_off.begin(TENANT) as s,
    ):
        s.get(Photo, key).title = "second"
    assert kit.cache.get_row(Photo, key, tenant=TENANT).title == "first"  # what the outbox is for
    assert "1 transactions" in run("cache", "stats", "--config", config, code=3).stderr
    assert run("cache", "drain", "--config", config).stdout == "1 transactions marked\n"
    assert kit.cache.get_row(Photo, key, tenant=TENANT).title == "second"
    assert run("cache", "drain", "--config", config).stdout == "0 transactions marked\n"
    run("cache", "stats", "--config", config)


def test_what_cannot_be_verified_is_refused(config, place, databases, tmp_path):
    assert "none of these models is cached" in refused("cache", "verify", "--config", config, "--models", "fleet:Base", **place)
    bare = settings_file(tmp_path / "bare.toml", databases)
    assert "redis_url" in refused("cache", "verify", "--config", bare, "--models", MODELS, **place)
    assert "no redis_url" in run("cache", "stats", "--config", bare, code=3).stderr


def test_relay_overtakes_what_psql_wrote(config, databases, place, kit, key):
    relay = ("cache", "relay", "--config", config, "--models", MODELS)
    assert kit.cache.get_row(Photo, key, tenant=TENANT).title == "first"
    done = run(*relay, "--once", **place)  # makes the slot, and forgets what was stored before it
    assert "REPLICA IDENTITY FULL" in done.stderr
    assert kit.cache.get_row(Photo, key, tenant=TENANT).title == "first"
    route = kit.locate(TENANT)
    with psycopg.connect(databases.servers[route.server]) as psql:
        psql.execute(f"UPDATE {route.schema}.photos SET title = 'by hand'")
    assert run(*relay, "--once", **place).stdout == "1 keys marked\n"
    assert kit.cache.get_row(Photo, key, tenant=TENANT).title == "by hand"
    run(*relay, "--remove", **place)
    with psycopg.connect(databases.servers[route.server]) as psql:
        slots = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()"
        assert psql.execute(slots).fetchone() == (0,)
        assert psql.execute("SELECT count(*) FROM pg_publication").fetchone() == (0,)
