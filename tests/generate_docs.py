"""Writes the reference pages that follow from the program: ``python tests/generate_docs.py``. A test says when to."""

from __future__ import annotations

import ast
import sys
from dataclasses import MISSING, fields
from itertools import pairwise
from pathlib import Path

import click

ROOT = Path(__file__).parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from shardkit import settings
from shardkit.cli import main

WIDTH = 100
CLI_HEAD = """# Command line

Made from `--help` by `python tests/generate_docs.py`.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 something is behind, drifts or does not run. Data goes to stdout, talk to
stderr. A command that changes the cluster shows its plan and asks, unless `--yes`; without a terminal it needs `--yes`. Every
one can be killed and run again; a move (or isolate, or rollback) that has begun is gone on with by `shardkit moves resume`,
which does not ask.

Completion in the shell: `eval "$(_SHARDKIT_COMPLETE=bash_source shardkit)"`, or `zsh_source`, `fish_source`.
"""
SETTINGS_HEAD = """# Settings

Made from the class `shardkit.Settings` by `python tests/generate_docs.py`.

A program gives settings by name (`ShardKit(catalog_url=...)`), in a TOML file (`ShardKit.from_toml(path)`), or in the
environment (`ShardKit.from_env()`): `SHARDKIT_CONFIG` names the file, and a variable `SHARDKIT_<SETTING>` wins over it. An
unknown key is an error. Times are in seconds.

```toml
catalog_url = "postgresql://user:secret@127.0.0.1:5432/catalog"
redis_url = "redis://:secret@127.0.0.1:6379/0"
pool_size = 20

[servers.pg1]
url = "postgresql://user:secret@127.0.0.1:5432/shards"
```

| setting | type | default | what it is |
|---|---|---|---|
"""


def cli_page() -> str:
    return CLI_HEAD + "".join(sections(main, click.Context(main, info_name="shardkit", terminal_width=WIDTH)))


def sections(command: click.Command, ctx: click.Context) -> list[str]:
    found = [f"\n## {ctx.command_path}\n\n```text\n{command.get_help(ctx)}\n```\n"]
    if isinstance(command, click.Group):
        for name in command.list_commands(ctx):
            inner = command.get_command(ctx, name)
            assert inner is not None
            found += sections(inner, click.Context(inner, info_name=name, parent=ctx, terminal_width=WIDTH))
    return found


def settings_page() -> str:
    about = described(Path(settings.__file__).read_text("utf-8"))
    lines = []
    for field in fields(settings.Settings):
        default = "*none: it must be given*" if field.name == "catalog_url" else f"`{field.default!r}`"
        if field.default_factory is not MISSING:
            default = "`{}`"
        kind = str(field.type).replace("Secret", "str").replace("|", "or")
        lines.append(f"| `{field.name}` | {kind} | {default} | {about[field.name]} |\n")
    return SETTINGS_HEAD + "".join(lines)


def described(source: str) -> dict[str, str]:
    """The text under each annotated name of the class Settings."""
    tree = ast.parse(source)
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Settings")
    return {
        node.target.id: " ".join(after.value.value.split())
        for node, after in pairwise(body)
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and isinstance(after, ast.Expr)
        and isinstance(after.value, ast.Constant)
    }


PAGES = {"docs/reference/cli.md": cli_page, "docs/reference/settings.md": settings_page}

if __name__ == "__main__":
    for path, page in PAGES.items():
        (ROOT / path).write_text(page(), "utf-8")
        print(path)
