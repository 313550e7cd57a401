"""What commands share: where the settings come from, asking before a change, tables and JSON."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from shardkit.errors import SettingsError
from shardkit.settings import CONFIG_VARIABLE, Settings

BEHIND = 3
LOCAL_CONFIG = Path(".shardkit/local/shardkit.toml")

config_option = click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    help=f"Settings file (TOML).  [default: ${CONFIG_VARIABLE}; SHARDKIT_* variables win over the file]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Show what would be done, and change nothing.")
yes_option = click.option("--yes", is_flag=True, help="Do not ask.")


def models_from_here() -> None:
    """As `python -m` would: the program's models are often where one stands."""
    sys.path.insert(0, "")


class Shards(click.ParamType[frozenset[int]]):
    """Shard numbers: ``7``, ``0-15`` or ``0-15,40,291``."""

    name = "SHARDS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> frozenset[int]:
        """The numbers as a set."""
        if isinstance(value, frozenset):
            return value
        found: set[int] = set()
        for part in value.split(","):
            match = re.fullmatch(r"\s*(\d{1,5})(?:-(\d{1,5}))?\s*", part)
            if match is None:
                self.fail(f"{value!r} is no list of shards: use 7 or 0-15,40", param, ctx)
            first, last = int(match[1]), int(match[2] or match[1])
            if last < first:
                self.fail(f"{part.strip()} ends before it begins", param, ctx)
            found |= set(range(first, last + 1))
        return frozenset(found)


def settings_from(config: Path | None) -> Settings:
    """Settings from --config, those of the program that runs this command (``flask shardkit``), or of the environment."""
    around = click.get_current_context(silent=True)
    if config is None and around is not None and (given := around.find_object(Settings)) is not None:
        return given
    environment = dict(os.environ)
    if config is not None:
        environment[CONFIG_VARIABLE] = str(config)
    try:
        return Settings.from_env(environment)
    except SettingsError as exc:
        if CONFIG_VARIABLE not in environment and LOCAL_CONFIG.is_file():
            raise SettingsError(f"{exc.args[0]}. For the local cluster here: --config {LOCAL_CONFIG}") from exc
        raise


def named_pairs(pairs: Sequence[str], *, option: str) -> dict[str, str]:
    """``NAME=VALUE`` arguments as a dict; the same name twice is wrong usage."""
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals and value):
            raise click.UsageError(f"{option} takes NAME=VALUE")  # the pair itself may hold a password
        if name in found:
            raise click.UsageError(f"{option} names {name!r} twice")
        found[name] = value
    return found


def go_on(question: str, *, yes: bool, dry_run: bool, name: str | None = None) -> None:
    """Return where the change is wanted: after --yes, or when the person says so (or types *name*); else end here."""
    if dry_run:
        click.echo("dry run: nothing was changed", err=True)
        raise click.exceptions.Exit(0)
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError(
            "there is no terminal to ask on, so nothing was changed: give --yes, or look first with --dry-run"
        )
    if name is None:
        click.confirm(question, abort=True, err=True)
    elif click.prompt(f"{question} Type its name to go on", err=True) != name:
        click.echo("that is not its name; nothing was changed", err=True)
        raise click.Abort


def print_json(value: Any) -> None:
    """*value* as JSON on stdout."""
    click.echo(json.dumps(value, indent=2, default=str))


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]], *, err: bool = False) -> None:
    """Columns as wide as they need to be, numbers to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    right = [all(isinstance(row[i], int | float) for row in rows) and bool(rows) for i in range(len(header))]
    for line in (list(header), *cells):
        padded = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True)]
        click.echo("  ".join(padded).rstrip(), err=err)


def readable_size(size_bytes: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} {unit}" if size_bytes >= 100 or unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} TB"
