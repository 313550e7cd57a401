"""``shardkit demo`` ends by itself, tells the truth, and leaves nothing behind."""

from __future__ import annotations

import json
import sys

import pytest

from tests.acceptance.program import PROGRAM, environment, on_a_terminal, refused, run


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
    command = [sys.executable, "-c", PROGRAM, "demo", "--servers", "1", "--shards", "4"]
    code, shown = on_a_terminal(command, env=environment(), columns=80, cwd=tmp_path)
    assert code == 0
    assert "━" in shown
    assert "\x1b[32m" in shown
    assert "Done" in shown


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
