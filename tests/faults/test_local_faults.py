"""Whatever is killed: no orphan, no lost row, and the next start works."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner
from locallab import empty_place, exists, one

import shardkit
from shardkit.cli import main
from shardkit.errors import DiskFullError, LocalClusterError
from shardkit.local import binaries, run_local
from shardkit.local.control import Control
from shardkit.local.keeper import children

ROOT = Path(shardkit.__file__).parents[1]
IS_ROOT = os.geteuid() == 0
as_root = pytest.mark.skipif(not IS_ROOT, reason="only root can become somebody else, or mount")
PROGRAM = """
import json, os, sys, threading
from shardkit.local import run_local
def main():
    cluster = run_local(servers=2, fast=True)
    about = {"home": str(cluster.data_dir), "pids": cluster.running(), "url": cluster.servers[0].url}
    print(json.dumps(about), flush=True)
"""


def keeper_of(home):
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            command = (process / "cmdline").read_bytes().split(b"\0") if process.name.isdigit() else []
            if len(command) > 4 and command[3].endswith(b"/keeper.py") and command[4] == os.fsencode(home):
                return int(process.name)
    return None


def family(pid):
    """*pid* and its descendants."""
    return [pid, *(each for kid in children(pid) for each in family(kid))]


@pytest.fixture
def home():
    with empty_place("local") as parent:
        yield parent / "local"


@contextlib.contextmanager
def program(ending, **how):
    """A Python program with a temporary cluster; yields it with what it said about the cluster."""
    how = {"args": [sys.executable, "-c", PROGRAM + ending], "cwd": ROOT} | how
    with subprocess.Popen(stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True, **how) as process:
        try:
            line = process.stdout.readline()
            assert line, f"the program said nothing and ended with {process.wait()}"
            yield process, json.loads(line)
        finally:
            process.kill()


@pytest.mark.parametrize(
    "ending",
    [
        pytest.param("main(); sys.stdin.read()", id="main thread"),
        pytest.param("t = threading.Thread(target=main); t.start(); t.join(); sys.stdin.read()", id="ended thread"),
        pytest.param("main(); os.fork(); sys.stdin.read()", id="with a child that lives on"),
    ],
)
def test_a_killed_parent_leaves_no_orphan(eventually, ending):
    with program(ending) as (process, cluster):
        assert one(cluster["url"]) == 1  # also after the thread that started it has ended
        process.kill()
        process.wait()
        eventually(lambda: not any(exists(pid) for pid in cluster["pids"].values()))
        eventually(lambda: not Path(cluster["home"]).exists())
        eventually(lambda: keeper_of(cluster["home"]) is None)


@pytest.mark.parametrize("ending", ["main()", "main(); raise SystemExit(3)", "main(); os._exit(0)"])
def test_a_program_that_forgets_down_leaves_nothing(eventually, ending):
    with program(ending) as (process, cluster):
        process.wait(200)
        eventually(lambda: not any(exists(pid) for pid in cluster["pids"].values()))
        eventually(lambda: not Path(cluster["home"]).exists())


def test_a_forked_child_does_not_take_the_servers_down():
    with program("main()\nif not os.fork(): sys.exit()\nos.wait(); print('child gone', flush=True); sys.stdin.read()") as (
        process,
        cluster,
    ):
        assert process.stdout.readline() == "child gone\n"
        assert one(cluster["url"]) == 1


def test_a_killed_keeper_leaves_no_orphan_and_the_next_up_recovers(home, eventually):
    cluster = run_local(servers=2, data_dir=home, fast=True)
    pids = cluster.running()
    os.kill(keeper_of(home), signal.SIGKILL)
    eventually(lambda: not any(exists(pid) for pid in pids.values()))
    assert cluster.running() == {}
    again = run_local(servers=2, data_dir=home, fast=True)
    assert again.servers == cluster.servers
    assert [one(server.url) for server in again.servers] == [1, 1]


def test_recovery_after_everything_was_killed(home):
    cluster = run_local(servers=2, data_dir=home, fast=True)
    one(cluster.servers[1].url, "CREATE TABLE kept AS SELECT 42 AS answer")
    for pid in family(keeper_of(home)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    # The process id in a stale lock file may be anybody's by now.
    lock = home / "servers" / "pg1" / "postmaster.pid"
    lock.write_text(lock.read_text().replace(lock.read_text().split()[0], str(os.getpid()), 1))
    again = run_local(servers=2, data_dir=home, fast=True)
    assert list(again.running()) == ["pg1", "pg2", "redis"]
    assert one(again.servers[1].url, "SELECT answer FROM kept") == 42


def test_up_after_one_server_was_killed_starts_it(home):
    cluster = run_local(servers=2, data_dir=home, fast=True)
    pid = cluster.pid("pg1")
    cluster.kill_server("pg2")
    again = run_local(servers=2, data_dir=home, fast=True)
    assert again.pid("pg1") == pid
    assert one(again.servers[1].url) == 1


def test_a_killed_server_takes_its_children_and_loses_no_committed_row(home):
    cluster = run_local(servers=1, data_dir=home, fast=True, redis=False)
    url = cluster.servers[0].url
    one(url, "CREATE TABLE item AS SELECT generate_series(1, 1000) AS id")
    with contextlib.closing(psycopg.connect(url)) as busy:
        busy.execute("INSERT INTO item VALUES (1001)")
        pids = family(cluster.pid("pg1"))
        assert len(pids) > 4
        cluster.kill_server("pg1")
        assert not any(exists(pid) for pid in pids)
    cluster.start_server("pg1")
    assert one(url, "SELECT count(*) FROM item") == 1000  # without the row that was not committed


def test_a_frozen_server_does_not_stop_down(home):
    cluster = run_local(servers=1, data_dir=home, fast=True, redis=False)
    pids = family(cluster.pid("pg1"))
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    cluster.down()
    assert not any(exists(pid) for pid in pids)


def test_an_interrupted_making_is_made_anew(home):
    with run_local(servers=2, data_dir=home, fast=True, redis=False) as cluster:
        pass
    (home / "servers" / "pg2").rename(home / "building")  # as if killed before the last rename
    with run_local(servers=2, data_dir=home, fast=True, redis=False) as again:
        assert one(again.servers[1].url) == 1
        assert again.servers == cluster.servers
    assert not (home / "building").exists()


@as_root
def test_disk_full(home):
    home.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(home)], check=False, capture_output=True, text=True
    )
    if mount.returncode:
        pytest.skip(f"cannot mount here: {mount.stderr.strip()}")
    try:
        with pytest.raises(DiskFullError, match="no space left"):
            run_local(servers=2, data_dir=home, fast=True)
        assert list(home.iterdir()) == []
        assert keeper_of(home) is None
    finally:
        subprocess.run(["umount", str(home)], check=True)


@as_root
@pytest.mark.parametrize("mode", ["userns", "nobody"])
def test_root_has_two_ways_to_run_servers(mode, monkeypatch, eventually):
    if mode == "userns" and subprocess.run(["unshare", "-U", "true"], check=False).returncode:
        pytest.skip("user namespaces are refused here")
    environment = os.environ | {"SHARDKIT_LOCAL_ROOT_MODE": mode}
    with program("main(); sys.stdin.read()", env=environment) as (process, cluster):
        assert one(cluster["url"]) == 1
        home = Path(cluster["home"])
        owner = (home / "servers" / "pg1").stat().st_uid
        assert owner == (0 if mode == "userns" else 65534)
        os.kill(keeper_of(home), signal.SIGKILL)  # the death signal must survive the change of user
        eventually(lambda: not any(exists(pid) for pid in cluster["pids"].values()))
        process.kill()
        shutil.rmtree(home, ignore_errors=True)


@as_root
def test_as_nobody_data_must_be_in_reach(home, monkeypatch):
    monkeypatch.setenv("SHARDKIT_LOCAL_ROOT_MODE", "nobody")
    with pytest.raises(LocalClusterError, match=f"cannot enter {home.parent}"):
        run_local(servers=1, data_dir=home, fast=True)
    assert not home.exists()
    assert home.parent.stat().st_mode & 0o777 == 0o700


def python_for_everybody():
    """An interpreter that ``nobody`` can run, with our packages; None where there is none."""
    packages = Path(psycopg.__file__).parents[1]
    for python in (sys.executable, shutil.which("python3", path="/usr/bin")):
        environment = {"PYTHONPATH": f"{ROOT}:{packages}", "PATH": os.defpath}
        check = "import sys; assert sys.version_info >= (3, 11); import shardkit.local, click"
        argv = [python or "python3", "-c", check]
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            subprocess.run(argv, check=True, user="nobody", group="nogroup", env=environment, cwd="/")
            return python, environment
    return None


@as_root
def test_a_normal_user_needs_nothing_special(eventually):
    found = python_for_everybody()
    if found is None:
        pytest.skip("no Python and packages here that another user could run")
    python, environment = found
    if not os.access(binaries.find_postgres()["postgres"], os.X_OK):
        pytest.skip("no PostgreSQL here that another user could run")
    how = {"args": [python, "-c", PROGRAM + "main(); sys.stdin.read()"], "env": environment, "cwd": "/"}
    with program("", user="nobody", group="nogroup", extra_groups=[], **how) as (process, cluster):
        assert one(cluster["url"]) == 1
        assert Path(cluster["home"]).stat().st_uid == 65534
        process.kill()
        process.wait()
        eventually(lambda: not any(exists(pid) for pid in cluster["pids"].values()))
        eventually(lambda: not Path(cluster["home"]).exists())


def test_start_that_failed_by_its_settings_does_not_spoil_the_next(home):
    run_local(servers=1, redis=False, data_dir=home, trust=True, fast=True).down()
    with pytest.raises(LocalClusterError):
        run_local(servers=2, redis=False, data_dir=home, trust=True, fast=True, settings={"work_mem": "lots"})
    with run_local(servers=1, redis=False, data_dir=home, trust=True, fast=True) as cluster:
        assert list(cluster.running()) == ["pg1"]


def test_down_ends_the_keeper_of_a_start_that_was_killed_at_once(home):
    home.mkdir()
    Control.launch(home, owned=False)
    told = CliRunner().invoke(main, ["local", "down", "--data-dir", str(home)])
    assert told.exit_code == 0, told.output
    assert keeper_of(home) is None
