"""A benchmark run from the command line, on real servers, leaves the file and the pictures it promises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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
    assert list(written.results) == ["up_cold_s", "up_warm_s", "down_s", "memory_mb"]
    assert "postgresql" in written.versions
    assert "up_cold_s" in ran.stdout
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".svg", ".png"}
    assert written.results["memory_mb"].median > 10


def test_memory_counts_the_children_too() -> None:
    child = [sys.executable, "-c", PARENT]
    with subprocess.Popen(child, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout
        parent.stdout.readline()  # the child holds its memory now, and so does its parent
        assert 120 < pss_mb([parent.pid]) < 300
        parent.kill()
    assert pss_mb([parent.pid]) == 0
