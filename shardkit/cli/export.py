"""``shardkit export``: one query over every shard, into a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from shardkit.cli.common import config_option, settings_from
from shardkit.export import export as write


@click.command()
@click.argument("query")
@click.option("--format", "kind", type=click.Choice(["csv", "jsonl", "parquet"]), default="csv", show_default=True)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="File to write; for parquet, a directory.")
@config_option
def export(query: str, kind: Any, output: Path, config: Path | None) -> None:
    """Write the rows of QUERY, one SELECT, from every shard to a file, all tenants' rows.

    Each shard is asked by itself, one after the other: ORDER BY, LIMIT and aggregates count for each shard alone. Run the same
    command again to go on after it was stopped.
    """
    settings = settings_from(config)
    shown = -1

    def progress(shards: int, rows: int) -> None:
        nonlocal shown
        if shards * 20 // 256 != shown or shards < 16:
            shown = shards * 20 // 256
            click.echo(f"\r{shards} shards, {rows} rows", err=True, nl=False)

    try:
        rows = write(settings, query, output, format=kind, progress=progress)
    except OSError as exc:
        raise click.ClickException(
            f"{exc.filename or output} cannot be written: {exc.strerror}. Shards written before stay; run the command again"
        ) from exc
    click.echo(f"\r{rows} rows in {output}        ", err=True)
