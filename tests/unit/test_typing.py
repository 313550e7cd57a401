"""The public annotations are what ``tests/typing/api.py`` says, by the strict checker."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy", reason="the type checker is a development tool")
ROOT = Path(__file__).parents[2]


def check(path):
    return subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", str(path)], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_the_public_api_is_typed():
    found = check("tests/typing/api.py")
    assert found.returncode == 0, found.stdout


def test_a_wrong_use_is_found(tmp_path):
    planted = tmp_path / "planted.py"
    planted.write_text("from shardkit import ShardKit\nx: int = ShardKit('postgresql:///x').locate('acme')\n")
    assert "[assignment]" in check(planted).stdout
