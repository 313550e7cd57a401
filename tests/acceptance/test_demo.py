"""``shardkit demo`` ends by itself, tells the truth, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys

import pytest

from tests.acceptance.program import PROGRAM, environment, refused, run


def test_demo_from_beginning_to_end(tmp_path):
    done = run("demo", "--servers", 2, "--shards", 16, cwd=tmp_path)
    assert "\x1b" not in done.stdout  # no colours where there is no terminal
    assert "28," in done.stdout
    assert "all there" in done.stdout
    assert "NoTenantError" in done.stdout
    assert "TenantKeyError" in done.stdout
    assert "get(Airport, id_of_us)  None\n" in done.stdout
    assert "raw SQL, no WHERE       0\n" in done.stdout
    assert "Done in" in done.stdout
    assert not list(tmp_path.iterdir())


def test_kept_cluster_can_be_played_with(tmp_path):
    config = {"SHARDKIT_CONFIG": ".shardkit/demo/shardkit.toml"}
    try:
        assert "The cluster runs on" in run("demo", "--servers", 1, "--shards", 4, "--keep", cwd=tmp_path).stdout
        assert json.loads(run("status", "--json", cwd=tmp_path, env=config).stdout)["shards"] == 4
        assert "a kept demo is in" in refused("demo", "--keep", cwd=tmp_path)
        run("status", cwd=tmp_path, env=config)
    finally:
        run("local", "down", "--purge", "--yes", "--data-dir", ".shardkit/demo", cwd=tmp_path)


def test_demo_on_a_terminal_has_colours_and_bars(tmp_path):
    mine, theirs = pty.openpty()
    command = [sys.executable, "-c", PROGRAM, "demo", "--servers", "1", "--shards", "4"]
    env = environment(TERM="xterm-256color", COLUMNS="80")
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env, cwd=tmp_path) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                part = os.read(mine, 65536)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            shown += part
        assert process.wait(60) == 0
    os.close(mine)
    assert "━" in shown.decode()
    assert b"\x1b[32m" in shown
    assert b"Done" in shown


@pytest.mark.parametrize("arguments", [["--shards", "100"], ["--shards", "0"]])
def test_demo_that_cannot_be(arguments, tmp_path):
    done = run("demo", *arguments, cwd=tmp_path, code=1)
    assert "power of two" in done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_data_set_is_not_installed(tmp_path):
    (tmp_path / "airportsdata.py").write_text("raise ImportError('not here')\n", "utf-8")
    line = refused("demo", cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)})
    assert 'pip install "shardkit[local,demo]"' in line
    assert "nothing was started" in line
