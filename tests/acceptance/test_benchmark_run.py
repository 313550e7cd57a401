"""A benchmark run from the command line, on real servers, leaves the file and the pictures it promises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.local import pss_mb

ROOT = Path(__file__).parents[2]
PARENT = """
import subprocess, sys
held = bytearray(50_000_000)
child = subprocess.Popen([sys.executable, "-c", "held = bytearray(70_000_000); print(flush=True); input()"], stdin=0)
input()
"""


def test_local_quick_leaves_a_valid_report_and_plots(tmp_path: Path) -> None:
    file = tmp_path / "local.json"
    command = [sys.executable, "-m", "benchmarks", "local", "--quick", "--json", str(file), "--plot", str(tmp_path)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert ran.returncode == 0, ran.stderr
    written = report.read(file)
    assert list(written.results) == ["up_cold_s", "up_warm_s", "down_s", "memory_mb", "init_256_s", "init_256_from_template_s"]
    assert "postgresql" in written.versions
    assert "up_cold_s" in ran.stdout
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".svg", ".png"}
    assert written.results["memory_mb"].median > 10


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("shards", "shards_64_vs_1 ops_64_on_1 p99_ms_64_on_4 backend_mb_64_on_2 bank_shards_16_vs_1 servers_2_vs_1_free"),
        ("year", "fullest_over_best_10 moved_share_100 hot_servers_1000 drain_minutes_1000 refresh_mb_10 map_kb_10"),
    ],
)
def test_quick_run_has_the_keys_it_promises(name: str, keys: str, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    command = [sys.executable, "-m", "benchmarks", name, "--quick", "--json", str(file), "--plot", str(tmp_path)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert ran.returncode == 0, ran.stderr
    written = report.read(file)
    assert set(keys.split()) <= written.results.keys()
    for key in ("servers_2_vs_1", "servers_4_vs_1") if name == "shards" else ("fullest_over_best_10000",):
        assert key in written.results or key in written.skipped
    assert (tmp_path / f"{name}.svg").is_file()


def test_memory_counts_the_children_too() -> None:
    child = [sys.executable, "-c", PARENT]
    with subprocess.Popen(child, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout
        parent.stdout.readline()  # the child holds its memory now, and so does its parent
        assert 120 < pss_mb([parent.pid]) < 300
        parent.kill()
    assert pss_mb([parent.pid]) == 0
