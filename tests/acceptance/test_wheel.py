"""The wheel holds all that is needed, works outside of a checkout, and leaves nothing at the top of site-packages."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.acceptance.program import ROOT, environment, settings_file

PAGE = tuple(f"contrib/dashboard/static/{name}" for name in ("dashboard.html", "dashboard.css", "dashboard.js", "icon.svg"))


def setuptools_is_new_enough() -> bool:
    try:
        return int(importlib.metadata.version("setuptools").partition(".")[0]) >= 77
    except importlib.metadata.PackageNotFoundError:
        return False


def source(into: Path) -> Path:
    """What git tracks or would track, without build leftovers of the checkout."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=False, stdin=subprocess.DEVNULL)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            (into / name).write_bytes((ROOT / name).read_bytes())
    return into


def pip(*arguments) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    alone = ["--no-build-isolation"] if setuptools_is_new_enough() else []
    pip("wheel", "-q", "--no-deps", *alone, "-w", folder / "out", source(folder / "source"))
    (built,) = (folder / "out").glob("*.whl")
    return built


def test_a_source_distribution_gives_the_same_wheel(wheel, tmp_path):
    if not setuptools_is_new_enough():
        pytest.skip("setuptools is older than the build needs")
    build = f"from setuptools import build_meta; print(build_meta.build_sdist({str(tmp_path)!r}))"
    folder = source(tmp_path / "source")
    done = subprocess.run([sys.executable, "-c", build], cwd=folder, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    (packed,) = tmp_path.glob("*.tar.gz")
    pip("wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path / "out", packed)
    (again,) = (tmp_path / "out").glob("*.whl")
    assert sorted(zipfile.ZipFile(again).namelist()) == sorted(zipfile.ZipFile(wheel).namelist())


def test_wheel_holds_the_package_and_nothing_beside_it(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"shardkit"}
    for needed in ("py.typed", "sql/server.sql", "migrations/catalog/env.py", "migrations/catalog/script.py.mako", *PAGE):
        assert f"shardkit/{needed}" in names
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "shardkit").rglob("*.py")}
    trees = {f"shardkit/{path.relative_to(ROOT)}" for path in (ROOT / "migrations").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules | trees
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    (entries,) = (zipfile.ZipFile(wheel).read(name).decode() for name in names if name.endswith("/entry_points.txt"))
    assert "[flask.commands]\nshardkit = shardkit.cli.flask:shardkit" in entries


def test_installed_program_makes_a_cluster(wheel, tmp_path, shardkit_databases):
    installed = tmp_path / "installed"
    pip("install", "-q", "--no-deps", "--target", installed, wheel)
    config = settings_file(tmp_path / "shardkit.toml", shardkit_databases(2))
    env = environment(PYTHONPATH=str(installed), SHARDKIT_CONFIG=str(config))

    def shardkit(*arguments) -> str:
        command = [sys.executable, installed / "bin" / "shardkit", *arguments]
        done = subprocess.run(command, cwd="/", env=env, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = [sys.executable, "-c", "import shardkit; print(shardkit.__file__)"]
    found = subprocess.run(where, cwd="/", env=env, capture_output=True, text=True, check=True).stdout.strip()
    assert os.path.commonpath([found, installed]) == str(installed)
    assert shardkit("--version").startswith("shardkit 0.")
    shardkit("init", "--shards", "4", "--yes")
    assert json.loads(shardkit("status", "--json"))["healthy"]
