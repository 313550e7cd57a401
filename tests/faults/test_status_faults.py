"""``shardkit status`` when servers are dead or frozen: it says so, in bounded time, and shows the others."""

from __future__ import annotations

import json
import os
import signal

import pytest

from shardkit.local import run_local
from shardkit.schema.bootstrap import initialize
from shardkit.settings import Settings
from tests.acceptance.program import run, settings_file


@pytest.fixture(scope="module")
def cluster():
    with run_local(servers=2, redis=False, trust=True, fast=True) as cluster:
        settings = Settings(catalog_url=cluster.catalog_url)
        initialize(settings, servers={server.name: server.url for server in cluster.servers}, shard_count=4)
        yield cluster


def status(cluster, tmp_path, *, code):
    class Addresses:
        catalog_url = cluster.catalog_url
        servers = {server.name: server.url for server in cluster.servers}

    config = settings_file(tmp_path / "shardkit.toml", Addresses)
    done = run("status", "--json", "--config", config, code=code, env={"SHARDKIT_CONNECT_TIMEOUT_S": "8"})
    return {server["name"]: server for server in json.loads(done.stdout)["servers"]}


def test_frozen_server(cluster, tmp_path):
    pid = cluster.pid("pg2")
    os.kill(pid, signal.SIGSTOP)
    try:
        found = status(cluster, tmp_path, code=3)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert found["pg1"]["problems"] == []
    assert not found["pg2"]["reachable"]
    assert found["pg2"]["shards"] == 2
    status(cluster, tmp_path, code=0)


def test_dead_server(cluster, tmp_path):
    cluster.kill_server("pg2")
    try:
        found = status(cluster, tmp_path, code=3)
    finally:
        cluster.start_server("pg2")
    assert found["pg1"]["reachable"]
    assert "does not answer" in found["pg2"]["problems"][0]
    status(cluster, tmp_path, code=0)
