"""Local clusters come up, stay as they were, and leave nothing behind."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

import psycopg
import pytest
import redis
from locallab import empty_place, exists, one

from shardkit.errors import LocalClusterError, PortTakenError, SettingsError
from shardkit.local import run_local, up
from shardkit.local.control import Control


def at_work_in(home):
    """Command lines that name *home*: the keeper and every server of the cluster in it."""
    found = []
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if process.name.isdigit() and os.fsencode(home) in (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return found


@pytest.fixture
def home():
    """A place for a cluster that is not there yet."""
    with empty_place("local") as parent:
        yield parent / "local"


def test_a_temporary_cluster_serves_and_leaves_nothing():
    with run_local(servers=2, fast=True) as cluster:
        pids = cluster.running()
        assert list(pids) == ["pg1", "pg2", "redis"]
        assert [server.name for server in cluster.servers] == ["pg1", "pg2"]
        for server in cluster.servers:
            assert one(server.url, "SELECT current_setting('cluster_name')") == server.name
            assert one(server.url, "SELECT current_user || '@' || current_database()") == "shardkit@shardkit"
        assert one(cluster.catalog_url, "SELECT current_database()") == "shardkit_catalog"
        assert one(cluster.servers[1].url, "SELECT count(*) FROM pg_database WHERE datname = 'shardkit_catalog'") == 0
        with redis.Redis.from_url(cluster.redis_url) as client:
            assert client.ping()
        assert at_work_in(cluster.data_dir)
        assert cluster.data_dir.stat().st_mode & 0o077 in {0, 0o011}
    assert not cluster.data_dir.exists()
    assert not any(exists(pid) for pid in pids.values())
    assert not at_work_in(cluster.data_dir)
    cluster.down()


def test_up_twice_is_a_no_op(home):
    first = run_local(servers=2, data_dir=home, fast=True)
    pids, secret = first.running(), first.servers[0].password
    second = run_local(servers=2, data_dir=home, fast=True)
    assert second.running() == pids
    assert second.servers == first.servers
    assert second.servers[0].password == secret
    assert second.catalog_url == first.catalog_url


def test_down_stops_all_and_keeps_the_data(home):
    with run_local(servers=1, data_dir=home, fast=True, redis=False) as cluster:
        one(cluster.servers[0].url, "CREATE TABLE kept AS SELECT 42 AS answer")
        assert cluster.redis_url is None
    assert not at_work_in(home)
    assert not (home / "keeper.sock").exists()
    with run_local(servers=1, data_dir=home, fast=True, redis=False) as again:
        assert again.servers == cluster.servers
        assert one(again.servers[0].url, "SELECT answer FROM kept") == 42


def test_more_servers_are_added_and_fewer_refused(home):
    one_server = run_local(servers=1, data_dir=home, fast=True, redis=False)
    pid = one_server.pid("pg1")
    two = run_local(servers=2, data_dir=home, fast=True, redis=True)
    assert (two.pid("pg1"), list(two.running())) == (pid, ["pg1", "pg2", "redis"])
    assert one(two.servers[1].url, "SELECT 1") == 1
    with pytest.raises(SettingsError, match="has 2 servers, 1 were asked for"):
        run_local(servers=1, data_dir=home, fast=True)
    assert two.pid("pg1") == pid


def test_wrong_password_is_refused(home):
    cluster = run_local(servers=1, data_dir=home, fast=True)
    server = cluster.servers[0]
    assert one(server.url, "SELECT rolpassword LIKE 'SCRAM-SHA-256%%' FROM pg_authid WHERE rolname = 'shardkit'")
    for url in (server.dsn, server.url.replace(server.password, "wrong"), server.dsn.replace("/shardkit", "/postgres")):
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(url, connect_timeout=60)
    with redis.Redis(port=cluster.state.redis_port) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()


def test_servers_can_stream_to_each_other(home, eventually):
    cluster = run_local(servers=2, data_dir=home, fast=True, redis=False)
    source, target = (server.url for server in cluster.servers)
    assert one(source, "SHOW wal_level") == "logical"
    assert int(one(source, "SHOW max_locks_per_transaction")) == 256
    one(source, "CREATE TABLE item (id int PRIMARY KEY)")
    one(target, "CREATE TABLE item (id int PRIMARY KEY)")
    one(source, "INSERT INTO item VALUES (1)")
    one(source, "CREATE PUBLICATION p FOR TABLE item")
    with psycopg.connect(target, autocommit=True) as connection:
        connection.execute(f"CREATE SUBSCRIPTION s CONNECTION '{source}' PUBLICATION p")
    one(source, "INSERT INTO item VALUES (2)")
    eventually(lambda: one(target, "SELECT count(*) FROM item") == 2)


def test_settings_reach_the_servers(home):
    odd = {"search_path": "it's, odd", "work_mem": "9MB"}
    cluster = run_local(servers=1, data_dir=home, fast=True, redis=False, settings=odd)
    assert one(cluster.servers[0].url, "SHOW search_path") == "it's, odd"
    assert one(cluster.servers[0].url, "SHOW work_mem") == "9MB"


def test_a_taken_port_is_named_and_nothing_is_done(home):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortTakenError, match=f"port {port} "):
            run_local(servers=1, redis=False, data_dir=home, fast=True, ports=[port])
    assert not home.exists()


@pytest.mark.parametrize("lost", ["pg1", "redis"])
def test_a_port_lost_in_a_race_is_replaced(home, monkeypatch, lost):
    real = up.free_ports
    with socket.create_server(("127.0.0.1", 0)) as thief:
        stolen = thief.getsockname()[1]

        def first_a_stolen_one(count):
            monkeypatch.setattr(up, "free_ports", real)
            ports = real(count)
            ports[0 if lost == "pg1" else -1] = stolen
            return ports

        monkeypatch.setattr(up, "free_ports", first_a_stolen_one)
        monkeypatch.setattr(up, "check_free", list)  # lost after the check
        cluster = run_local(servers=2, data_dir=home, fast=True)
        assert list(cluster.running()) == ["pg1", "pg2", "redis"]
        assert stolen not in {*cluster.state.ports.values(), cluster.state.redis_port}
        assert one(cluster.servers[0].url, "SELECT 1") == 1


def test_a_start_that_fails_says_why_and_leaves_nothing(home):
    with pytest.raises(LocalClusterError, match="nonsense"):
        run_local(servers=2, data_dir=home, fast=True, settings={"work_mem": "nonsense"})
    assert not home.exists()
    assert not at_work_in(home)


def test_growth_that_fails_changes_nothing(home):
    cluster = run_local(servers=1, data_dir=home, fast=True, redis=False)
    pids = cluster.running()
    with pytest.raises(LocalClusterError, match="nonsense"):
        run_local(servers=2, data_dir=home, fast=True, redis=False, settings={"work_mem": "nonsense"})
    again = run_local(servers=1, data_dir=home, fast=True, redis=False)
    assert again.running() == pids
    assert list(again.state.ports) == ["pg1"]
    assert Control(home).running() == pids


def test_a_directory_with_other_things_is_not_touched(home):
    home.mkdir()
    (home / "thesis.txt").write_text("all of it")
    with pytest.raises(SettingsError, match=r"thesis\.txt"):
        run_local(servers=1, data_dir=home)
    assert [path.name for path in home.iterdir() if path.name != "lock"] == ["thesis.txt"]
    with pytest.raises(SettingsError, match="not a directory"):
        run_local(servers=1, data_dir=home / "thesis.txt")


def test_servers_stop_and_start_one_by_one(home):
    cluster = run_local(servers=2, data_dir=home, fast=True)
    for mode in ("fast", "immediate"):
        for name in ("pg2", "redis"):
            cluster.stop_server(name, mode=mode)
            assert cluster.pid(name) is None
            cluster.stop_server(name)
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(cluster.servers[1].url, connect_timeout=60)
        assert one(cluster.servers[0].url, "SELECT 1") == 1
        for name in ("pg2", "redis"):
            cluster.start_server(name)
            cluster.start_server(name)
        assert one(cluster.servers[1].url, "SELECT 1") == 1


def test_long_paths_are_no_trouble(home):
    deep = home / ("d" * 100) / ("e" * 100)
    with run_local(servers=1, data_dir=deep, fast=True, redis=False) as cluster:
        assert one(cluster.servers[0].url, "SELECT 1") == 1
    assert not at_work_in(deep)
