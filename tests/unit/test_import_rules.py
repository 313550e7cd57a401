"""The floors and doors of pyproject.toml are kept, and each of them reports the break it exists for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINT = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()", "--no-cache"]


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        LINT, cwd=root, env=environment, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package and its rules, where a test may break them."""
    shutil.copytree(ROOT / "shardkit", tmp_path / "shardkit", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def plant(root: Path, module: str, line: str) -> None:
    path = root.joinpath(*module.split(".")).with_suffix(".py")
    if path.with_suffix("").is_dir():
        path = path.with_suffix("") / "__init__.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    for package in path.parents:
        if package == root:
            break
        (package / "__init__.py").touch()
    text = path.read_text("utf-8") if path.exists() else ""
    path.write_text(f"{text}\n{line}\n", "utf-8")


def test_the_package_keeps_its_rules() -> None:
    result = lint(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("shardkit.core.names", "import time", "core is pure"),
        ("shardkit.core.hashing", "from datetime import datetime", "core is pure"),
        ("shardkit.errors", "import sqlalchemy", "core is pure"),
        ("shardkit.core.names", "import shardkit.sql", "floors"),
        ("shardkit.errors", "from shardkit.core import names", "floors"),
        ("shardkit.db.planted", "import click", "one door: click"),
        ("shardkit.catalog.planted", "import psycopg", "one door: psycopg"),
        ("shardkit.db.planted", "from redis import asyncio", "one door: redis"),
        ("shardkit._async.session", "import redis.asyncio", "one door: redis"),
        ("shardkit.db.planted", "import alembic.command", "one door: alembic"),
        ("shardkit.local.planted", "from rich import print", "one door: rich"),
        ("shardkit.contrib.fastapi", "import flask", "one door: flask"),
    ],
)
def test_planted_import_is_reported(copy: Path, module: str, line: str, contract: str) -> None:
    plant(copy, module, line)
    result = lint(copy)
    broken = [text for text in result.stdout.splitlines() if " BROKEN" in text and text.startswith(contract)]
    assert result.returncode != 0, result.stdout
    assert broken, result.stdout


def test_planted_module_on_no_floor_is_reported(copy: Path) -> None:
    plant(copy, "shardkit.stray", "STRAY = True")
    result = lint(copy)
    assert result.returncode != 0
    assert "stray" in result.stdout


def test_planted_circle_is_reported(copy: Path) -> None:
    plant(copy, "shardkit.core.left", "import shardkit.core.right")
    plant(copy, "shardkit.core.right", "import shardkit.core.left")
    result = lint(copy)
    assert result.returncode != 0
    assert "circle BROKEN" in result.stdout, result.stdout


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("shardkit._async.cache", "import redis.asyncio"),
        ("shardkit._sync.cache", "import redis"),
        ("shardkit.db.planted", "import psycopg"),
        ("shardkit.local.planted", "from psycopg import sql"),
        ("shardkit.schema.planted", "import alembic"),
        ("shardkit.cli", "import click"),
        ("shardkit.contrib.flask", "import flask"),
    ],
)
def test_the_one_door_is_open(copy: Path, module: str, line: str) -> None:
    plant(copy, module, line)
    library = line.split()[1].partition(".")[0]
    result = lint(copy)
    assert f"one door: {library} KEPT" in result.stdout, result.stdout
