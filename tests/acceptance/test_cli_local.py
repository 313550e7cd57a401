"""``shardkit local`` as people and scripts use it."""

from __future__ import annotations

import json
import socket
import tomllib

import psycopg
import pytest
from locallab import empty_place

from shardkit import run_local
from tests.acceptance.program import run


@pytest.fixture
def place():
    """A working directory."""
    with empty_place() as path:
        yield path


def test_up_status_down(place):
    up = run("local", "up", "--servers", 2, "--json", cwd=place)
    servers = json.loads(up.stdout)["servers"]  # data on stdout, talk on stderr
    assert list(servers) == ["pg1", "pg2", "redis"]
    assert "started pg1, pg2, redis" in up.stderr
    settings_file = place / ".shardkit" / "local" / "shardkit.toml"
    assert str(settings_file) in up.stderr
    settings = tomllib.loads(settings_file.read_text())
    with psycopg.connect(settings["servers"]["pg2"]["url"]) as connection:
        password = connection.info.password
    assert password
    again = run("local", "up", "--json", cwd=place)
    assert json.loads(again.stdout)["servers"] == servers
    assert "everything runs already" in again.stderr
    status = run("local", "status", cwd=place)
    assert f"pid {servers['pg1']['pid']}" in status.stdout
    assert status.stderr == ""
    cluster = run_local(data_dir=place / ".shardkit" / "local", servers=2, redis=True)
    cluster.stop_server("pg1")
    cluster.start_server("pg1")
    down = run("local", "down", cwd=place)  # in the order of their making, whatever was started last
    assert "stopped pg1, pg2, redis" in down.stderr
    assert down.stdout == ""
    assert password not in "".join(p.stdout + p.stderr for p in (up, again, status, down))
    behind = run("local", "status", "--json", cwd=place, code=3)
    assert json.loads(behind.stdout)["servers"]["pg1"]["pid"] is None
    assert "nothing was running" in run("local", "down", cwd=place).stderr


def test_purge_asks_first(place):
    run("local", "up", "--servers", 1, "--no-redis", cwd=place)
    refused = run("local", "down", "--purge", cwd=place, code=1, input="n\n")
    assert "Remove all data of pg1" in refused.stderr
    run("local", "status", cwd=place)
    run("local", "down", "--purge", "--yes", cwd=place)
    assert not (place / ".shardkit" / "local").exists()
    assert "shardkit local up" in run("local", "status", cwd=place, code=3).stderr


def test_an_error_is_one_clear_line(place):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        failed = run("local", "up", "--servers", 1, "--no-redis", "--port", port, cwd=place, code=1)
    assert failed.stdout == ""
    assert failed.stderr.startswith(f"error: port {port} ")
    assert failed.stderr.count("\n") == 1
    assert not (place / ".shardkit" / "local").exists()


@pytest.mark.parametrize("arguments", [["local", "up", "--servers", "0"], ["local", "sideways"], ["nonsense"]])
def test_wrong_usage(arguments, place):
    assert "Usage:" in run(*arguments, cwd=place, code=2).stderr


def test_help_and_version():
    assert "local" in run("--help").stdout
    assert "shardkit" in run("--version").stdout
