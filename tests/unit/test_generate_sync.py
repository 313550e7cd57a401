"""The sync twin is what would be generated, and a difference by hand is found."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ["shardkit/_async", "shardkit/_sync", "tests/integration/async_", "tests/integration/sync_"]


def check(root):
    return subprocess.run(
        [sys.executable, "tests/generate_sync.py", "--check"], cwd=root, capture_output=True, text=True, check=False
    )


@pytest.fixture
def copy(tmp_path):
    for part in PARTS:
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "tests/generate_sync.py", tmp_path / "tests")
    return tmp_path


def test_the_twin_in_the_tree_is_up_to_date():
    found = check(ROOT)
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize("name", ["shardkit/_sync/kit.py", "tests/integration/sync_/test_fence.py"])
def test_a_function_added_by_hand_is_found(copy, name):
    with (copy / name).open("a") as file:
        file.write("\n\ndef planted():\n    pass\n")
    found = check(copy)
    assert found.returncode == 1
    assert name in found.stderr


def test_a_file_generated_from_nothing_is_found(copy):
    (copy / "shardkit/_sync/planted.py").write_text("")
    found = check(copy)
    assert found.returncode == 1
    assert "shardkit/_sync/planted.py" in found.stderr


def test_a_missing_file_is_found(copy):
    (copy / "shardkit/_sync/kit.py").unlink()
    assert "shardkit/_sync/kit.py" in check(copy).stderr


def test_a_rule_that_is_never_used_is_an_error(copy):
    script = copy / "tests/generate_sync.py"
    script.write_text(script.read_text().replace("RULES = [", 'RULES = [\n    (r"never_there_at_all", "x"),', 1))
    found = check(copy)
    assert found.returncode == 1
    assert "never_there_at_all" in found.stderr
