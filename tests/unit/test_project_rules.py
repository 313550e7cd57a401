"""Rules of the house that no linter knows; each is checked on a planted break too."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON_FOLDERS = ("shardkit", "benchmarks", "tests", "examples", "migrations")
LONGEST = 400
# A path that only one machine has. Addresses (example.org/home/…) do not count, nor do patterns like the one below.
MACHINE_PATH = re.compile(r"(?<![\w.:/~)}-])/(?:work|root|home|Users|tmp)/[\w.-]+")


def too_long(source: str) -> str | None:
    count = source.count("\n")
    return f"{count} lines, more than {LONGEST}" if count > LONGEST else None


def docstring_without_idea(source: str) -> str | None:
    text = ast.get_docstring(ast.parse(source))
    if not text:
        return "no docstring"
    first = text.splitlines()[0]
    return None if first.endswith((".", "?", "!")) else f"first line of the docstring is no sentence: {first!r}"


def no_future_annotations(source: str) -> str | None:
    if not source.strip() or re.search(r"^from __future__ import annotations$", source, re.MULTILINE):
        return None
    return "no 'from __future__ import annotations'"


def sleeps(source: str) -> str | None:
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(attr="sleep", value=ast.Name(id="time")):
                return f"line {node.lineno} sleeps: wait for a condition instead, with a bound"
            case ast.ImportFrom(module="time", names=names) if any(alias.name == "sleep" for alias in names):
                return f"line {node.lineno} imports sleep: wait for a condition instead, with a bound"
    return None


def machine_path(source: str) -> str | None:
    found = MACHINE_PATH.search(source)
    return f"names a path of somebody's machine: {found[0]}" if found else None


# What a checker is told to pass over, and nothing behind it. (Which codes may be named, ruff and mypy know.)
SILENCED = re.compile(r"#\s*(?:noqa|type: ignore)(?:: ?[A-Z0-9, ]+|\[[\w, -]+\])?\s*$", re.MULTILINE)


def silenced_without_reason(source: str) -> str | None:
    found = SILENCED.search(source)
    return f"line {source.count(chr(10), 0, found.start()) + 1} silences a checker and does not say why" if found else None


def python_files(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def package_files() -> list[Path]:
    generated = ROOT / "shardkit" / "_sync"
    return [path for path in python_files("shardkit") if generated not in path.parents]


def written_files() -> list[Path]:
    """Python that people write: without what is generated."""
    return [path for path in python_files(*PYTHON_FOLDERS) if not {"_sync", "sync_"} & {*path.parts} and path != Path(__file__)]


def tracked_files() -> list[Path]:
    """What git tracks or would track; text only."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=False, stdin=subprocess.DEVNULL)
    if listed.returncode:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file() and b"\0" not in path.read_bytes()[:8192]]


@pytest.mark.parametrize(
    ("rule", "files"),
    [
        (too_long, package_files),
        (docstring_without_idea, package_files),
        (no_future_annotations, lambda: python_files(*PYTHON_FOLDERS)),
        (sleeps, lambda: [path for path in python_files("tests") if path != Path(__file__)]),
        (silenced_without_reason, written_files),
        (machine_path, tracked_files),
    ],
)
def test_rule_holds_everywhere(rule: Callable[[str], str | None], files: Callable[[], list[Path]]) -> None:
    checked = files()
    assert checked
    broken = [f"{path.relative_to(ROOT)}: {problem}" for path in checked if (problem := rule(path.read_text("utf-8")))]
    assert not broken, "\n".join(broken)


HOME = "/home"  # joined below, so that this file keeps the rule it checks


@pytest.mark.parametrize(
    ("rule", "planted"),
    [
        (too_long, "\n" * 401),
        (docstring_without_idea, "x = 1\n"),
        (docstring_without_idea, '"""Reads the map, and then\nroutes by it."""\n'),
        (no_future_annotations, '"""Idea."""\nimport os\n'),
        (sleeps, "import time\ntime.sleep(1)\n"),
        (sleeps, "from time import monotonic, sleep\n"),
        (silenced_without_reason, "x = y  # type: ignore[misc]\n"),
        (silenced_without_reason, "z = 1\nx = y  # noqa: S608, E501\n"),
        (machine_path, f"see {HOME}/ann/notes.md"),
        (machine_path, f'path = "{HOME}/ann"'),
    ],
)
def test_planted_break_is_found(rule: Callable[[str], str | None], planted: str) -> None:
    assert rule(planted)


@pytest.mark.parametrize(
    ("rule", "fine"),
    [
        (too_long, "\n" * 400),
        (docstring_without_idea, '"""One idea, in one sentence.\n\nMore of it."""\n'),
        (no_future_annotations, ""),
        (sleeps, "import asyncio\nasyncio.sleep(0)\n"),
        (silenced_without_reason, "x = y  # type: ignore[misc]  # its stubs are older\n"),
        (silenced_without_reason, "x = y  # noqa: S608  our own names\n"),
        (machine_path, f"https://example.org{HOME}/ann and ~{HOME}/ann"),
    ],
)
def test_what_keeps_the_rule_passes(rule: Callable[[str], str | None], fine: str) -> None:
    assert rule(fine) is None
