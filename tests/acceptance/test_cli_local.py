"""``shardkit local`` as people and scripts use it."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import psycopg
import pytest

import shardkit
from shardkit.local.control import Control

ROOT = Path(shardkit.__file__).parents[1]


def shardkit_cli(*arguments, cwd=ROOT, code=0, **how):
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from shardkit.cli import main; main(prog_name='shardkit')"
    argv = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, cwd=cwd, **how)
    assert done.returncode == code, done
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def place():
    """An empty working directory; memory is much quicker than the disk."""
    path = Path(tempfile.mkdtemp(prefix="sk-test-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    yield path
    Control(path / ".shardkit" / "local").down()
    shutil.rmtree(path)


def test_up_status_down(place):
    up = shardkit_cli("local", "up", "--servers", 2, "--json", cwd=place)
    servers = json.loads(up.stdout)["servers"]  # data on stdout, talk on stderr
    assert list(servers) == ["pg1", "pg2", "redis"]
    assert "started pg1, pg2, redis" in up.stderr
    settings_file = place / ".shardkit" / "local" / "shardkit.toml"
    assert str(settings_file) in up.stderr
    settings = tomllib.loads(settings_file.read_text())
    with psycopg.connect(settings["servers"]["pg2"]["url"]) as connection:
        password = connection.info.password
    assert password
    again = shardkit_cli("local", "up", "--json", cwd=place)
    assert json.loads(again.stdout)["servers"] == servers
    assert "everything runs already" in again.stderr
    status = shardkit_cli("local", "status", cwd=place)
    assert f"pid {servers['pg1']['pid']}" in status.stdout
    assert status.stderr == ""
    down = shardkit_cli("local", "down", cwd=place)
    assert "stopped pg1, pg2, redis" in down.stderr
    assert down.stdout == ""
    assert password not in "".join(p.stdout + p.stderr for p in (up, again, status, down))
    behind = shardkit_cli("local", "status", "--json", cwd=place, code=3)
    assert json.loads(behind.stdout)["servers"]["pg1"]["pid"] is None
    assert "nothing was running" in shardkit_cli("local", "down", cwd=place).stderr


def test_purge_asks_first(place):
    shardkit_cli("local", "up", "--servers", 1, "--no-redis", cwd=place)
    refused = shardkit_cli("local", "down", "--purge", cwd=place, code=1, input="n\n")
    assert "Remove all data of pg1" in refused.stderr
    shardkit_cli("local", "status", cwd=place)
    shardkit_cli("local", "down", "--purge", "--yes", cwd=place)
    assert not (place / ".shardkit" / "local").exists()
    assert "shardkit local up" in shardkit_cli("local", "status", cwd=place, code=3).stderr


def test_an_error_is_one_clear_line(place):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        failed = shardkit_cli("local", "up", "--servers", 1, "--no-redis", "--port", port, cwd=place, code=1)
    assert failed.stdout == ""
    assert failed.stderr.startswith(f"error: port {port} ")
    assert failed.stderr.count("\n") == 1
    assert not (place / ".shardkit" / "local").exists()


@pytest.mark.parametrize("arguments", [["local", "up", "--servers", "0"], ["local", "sideways"], ["nonsense"]])
def test_wrong_usage(arguments, place):
    assert "Usage:" in shardkit_cli(*arguments, cwd=place, code=2).stderr


def test_help_and_version():
    assert "local" in shardkit_cli("--help").stdout
    assert "shardkit" in shardkit_cli("--version").stdout
