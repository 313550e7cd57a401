"""Every page says what is so: its code runs, and what follows from the program is made from it.

How a page is run: its ``bash`` blocks (of ``console`` blocks, lines after ``$``) and ``python`` blocks in their order, in an
empty directory. A python block that begins with ``# NAME.py`` is saved under that name, the others share one namespace.
``sh``, ``toml`` and ``text`` blocks are to be read.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlparse

import pytest
from locallab import empty_place

from shardkit import errors
from shardkit.schema.blueprint import Blueprint
from shardkit.schema.bootstrap import initialize
from shardkit.settings import Settings
from tests.acceptance.program import PROGRAM, ROOT, environment, settings_file
from tests.generate_docs import PAGES

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
KNOWN = {"bash", "console", "python", "sh", "text", "toml"}
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
DRIVER = r"""
import json, os, subprocess, sys
names = {"__name__": "__main__"}
for number, (kind, code) in enumerate(json.load(sys.stdin)):
    if kind == "bash":
        script = code + "\nenv -0 > .environment\n"
        subprocess.run(["bash", "-euo", "pipefail", "-c", script], check=True, stdin=subprocess.DEVNULL)
        with open(".environment") as file:
            os.environ.update(item.split("=", 1) for item in file.read().split("\0") if "=" in item)
    elif code.startswith("# ") and code.partition("\n")[0].endswith(".py"):
        with open(code.partition("\n")[0][2:], "w") as file:
            file.write(code)
    else:
        exec(compile(code, f"python block {number}", "exec"), names)
"""


def blocks(page: str) -> list[tuple[str, str]]:
    found = []
    for kind, code in BLOCK.findall(page):
        assert kind in KNOWN, f"a block of kind {kind!r}: use one of {', '.join(sorted(KNOWN))}"
        if kind == "console":
            kind, code = "bash", "\n".join(line[2:] for line in code.splitlines() if line.startswith("$ "))
        if kind in {"bash", "python"}:
            found.append((kind, code))
    return found


def shop() -> str:
    """The models of the README, which the pages that explain use too."""
    return next(code for _, code in blocks((ROOT / "README.md").read_text("utf-8")) if code.startswith("# shop.py"))


@pytest.fixture
def place():
    with empty_place() as path:
        yield path


def play(page: str, place: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    programs = place / "bin"
    programs.mkdir()
    for name, command in {"shardkit": f'-c "{PROGRAM}"', "python": ""}.items():
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {command} "$@"\n', "utf-8")
        (programs / name).chmod(0o755)
    env = environment(**variables)
    env |= {"PATH": f"{programs}:{env['PATH']}", "PYTHONPATH": f"{ROOT}:{place}", "PYTHONWARNINGS": "error"}
    return subprocess.run(
        [sys.executable, "-c", DRIVER],
        input=json.dumps(blocks(page)),
        cwd=place,
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )


@pytest.mark.parametrize("path", [p for p in DOCS if blocks(p.read_text("utf-8"))], ids=lambda p: str(p.relative_to(ROOT)))
def test_code_of_a_page_runs(path, place, shardkit_databases):
    page = path.read_text("utf-8")
    variables = {}
    if "shardkit local up" not in page:
        databases = shardkit_databases(2)
        (place / "shop.py").write_text(shop(), "utf-8")
        settings = Settings(catalog_url=databases.catalog_url)
        model = subprocess.run(
            [sys.executable, "-c", "from shardkit.schema.blueprint import from_models; print(from_models('shop:Base').sql)"],
            cwd=place,
            env=environment(PYTHONPATH=f"{ROOT}:{place}"),
            capture_output=True,
            text=True,
            check=True,
        )
        initialize(settings, servers=databases.servers, shard_count=64, blueprint=Blueprint(model.stdout))
        variables["SHARDKIT_CONFIG"] = str(settings_file(place / "shardkit.toml", databases))
    done = play(page, place, **variables)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("kind", "code"), [("python", "assert False"), ("bash", "shardkit nonsense"), ("bash", "false | true")]
)
def test_planted_broken_block_is_found(kind, code, place):
    assert play(f"```{kind}\n{code}\n```\n", place).returncode != 0


def test_names_and_exports_carry_on(place):
    steps = [("bash", "export SEEN=1"), ("python", "import os\nseen = os.environ['SEEN']"), ("python", "assert seen == '1'")]
    done = play("".join(f"```{kind}\n{code}\n```\n" for kind, code in steps), place)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", sorted(PAGES))
def test_page_follows_from_the_program(path):
    written, made = (ROOT / path).read_text("utf-8"), PAGES[path]()
    assert written.split() == made.split(), "run: python tests/generate_docs.py"  # where lines break is click's business


def all_errors(kind=errors.ShardKitError):
    return [kind, *(found for sub in kind.__subclasses__() if sub.__module__ == errors.__name__ for found in all_errors(sub))]


def test_every_error_has_a_section_and_every_section_an_error():
    page = (ROOT / errors.DOCS).read_text("utf-8")
    head = re.compile(r"^## (SK\d+)\n\n\*\*(\w+)\*\* · outcome: (.+) · retryable: (yes|no)$", re.MULTILINE)
    sections = {name: (code, outcome, retryable) for code, name, outcome, retryable in head.findall(page)}
    assert page.count("\n## ") == len(sections) == page.count("*What to do:*")
    assert sections == {
        kind.__name__: (kind.code, kind.outcome.value, "yes" if kind.retryable else "no") for kind in all_errors()
    }


def test_codes_of_errors_are_their_own():
    codes = [kind.code for kind in all_errors()]
    assert len(set(codes)) == len(codes)
    tree = errors.__doc__
    assert all(re.search(rf"\b{kind.__name__} +{kind.code}\b", tree) for kind in all_errors() if kind.code != "SK000")


@pytest.mark.parametrize("path", DOCS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    targets = [link.partition("#")[0] for link in LINK.findall(path.read_text("utf-8")) if not urlparse(link).scheme]
    missing = [target for target in targets if target and not (path.parent / target).exists()]
    assert not missing


def test_readme_begins_with_the_two_commands():
    first_screen = (ROOT / "README.md").read_text("utf-8").splitlines()[:30]
    assert 'pip install -e ".[local,demo]" && shardkit demo' in first_screen
    assert 'pip install -e ".[test]" && pytest' in first_screen
