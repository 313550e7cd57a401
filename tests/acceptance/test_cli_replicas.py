"""Replicas through the command line: a real standby joins, serves, is seen to fail, and leaves."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from shardkit.catalog.changes import change_server
from shardkit.catalog.overview import current_map, opened
from shardkit.catalog.standbys import carry_out, plan_replica
from shardkit.core.shardmap import ServerState
from shardkit.errors import MapConflictError
from shardkit.local import run_local
from shardkit.local.databases import fresh_databases
from shardkit.settings import Settings
from tests.acceptance.program import refused, run, settings_file

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))

from standby import make_standby


@pytest.fixture(scope="module")
def cluster():
    with run_local(servers=2, redis=False, trust=True, fast=True) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def standby(cluster):
    return make_standby(cluster, of="pg2", name="pg2b")


@pytest.fixture
def databases(cluster):
    with fresh_databases(cluster.servers, 2) as databases:
        yield databases


@pytest.fixture
def config(databases, tmp_path):
    path = settings_file(tmp_path / "shardkit.toml", databases)
    run("init", "--config", path, "--shards", 4, "--yes")
    return path


@pytest.fixture
def url(standby, databases, config, eventually):
    """The standby's address; it has what init made."""
    eventually(lambda: standby.caught_up_with(databases.servers["pg2"]))
    return standby.url_of(make_url(databases.servers["pg2"]).database)


def replicas(databases):
    shardmap = current_map(Settings(catalog_url=databases.catalog_url))
    return {name: len(server.replicas) for name, server in shardmap.servers.items()}


def test_a_replica_joins_and_leaves(databases, config, url, standby, eventually):
    assert json.loads(run("server", "replica", "list", "--json", "--config", config).stdout) == []
    add = ("server", "replica", "add", "pg2", url, "--config", config)
    run(*add, "--dry-run")
    assert "--yes" in refused(*add, code=2)
    assert replicas(databases) == {"pg1": 0, "pg2": 0}
    run(*add, "--yes")
    assert "already" in run(*add, "--yes").stderr
    assert replicas(databases) == {"pg1": 0, "pg2": 1}
    eventually(lambda: standby.caught_up_with(databases.servers["pg2"]))
    (listed,) = json.loads(run("server", "replica", "list", "--json", "--config", config).stdout)
    assert (listed["server"], listed["timeline"], listed["problem"]) == ("pg2", 1, None)
    assert isinstance(listed["lag_bytes"], int)
    assert " ok" in run("server", "replica", "list", "--config", config).stdout
    remove = ("server", "replica", "remove", "pg2", listed["dsn"], "--config", config)  # as the list shows it
    run(*remove, "--dry-run")
    assert replicas(databases)["pg2"] == 1
    run(*remove, "--yes")
    assert replicas(databases)["pg2"] == 0
    assert "has no replica" in refused(*remove, "--yes")


def test_what_is_no_replica_of_the_server_is_refused(databases, config, url, standby):
    add = ("server", "replica", "add")
    more = ("--config", config, "--yes")
    assert "takes writes" in refused(*add, "pg2", databases.servers["pg2"], *more)
    assert "is not a copy of that server" in refused(*add, "pg1", url, *more)
    assert "is not a copy of that server" in refused(*add, "pg2", standby.url_of("postgres"), *more)
    assert "pg9" in refused(*add, "pg9", url, *more)
    assert "does not answer" in refused(*add, "pg2", "postgresql://127.0.0.1:1/nothing", *more)
    assert "could not be parsed" in refused(*add, "pg2", "postgresql://[half/x", *more)
    assert "standby" in refused("server", "change", "pg2", "--url", url, *more)
    assert "sslmode=verify-full" in refused(*add, "pg2", "postgresql://db.example.org/x", *more)
    assert replicas(databases) == {"pg1": 0, "pg2": 0}


def test_a_replica_that_is_gone_is_shown_and_can_be_taken_out(databases, config, url, standby):
    run("server", "replica", "add", "pg2", url, "--config", config, "--yes")
    standby.end()
    try:
        (listed,) = json.loads(run("server", "replica", "list", "--json", "--config", config, code=3).stdout)
        assert "does not answer" in listed["problem"]
        assert "does not answer" in run("server", "replica", "list", "--config", config, code=3).stdout
        run("server", "replica", "remove", "pg2", url, "--config", config, "--yes")
    finally:
        standby.start()
    assert replicas(databases)["pg2"] == 0


def test_a_change_in_between_is_not_overwritten(databases, config, url):
    settings = Settings(catalog_url=databases.catalog_url, servers=databases.servers)
    planned = plan_replica(settings, "pg2", url)
    with opened(settings) as catalog:
        change_server(catalog, "pg1", state=ServerState.DRAINING)
    with pytest.raises(MapConflictError):
        carry_out(settings, planned)
    assert replicas(databases) == {"pg1": 0, "pg2": 0}
