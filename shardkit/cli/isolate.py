"""``shardkit isolate``: one tenant gets a shard of its own, while it and its neighbours are read and written."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from shardkit.cli.common import go_on, print_json, print_table, readable_size, settings_from
from shardkit.cli.moves import carry, move_options, options_of, show_findings
from shardkit.move.isolate import IsolateForecast, begin_isolate, forecast


@click.command()
@click.argument("tenant")
@click.option("--to", "target", help="The server it goes to.  [default: the one it is on]")
@click.option("--whole", multiple=True, metavar="TABLE", help="Copy this table wholly, though it has no tenant_id.")
@click.option("--no-soak", is_flag=True, help="Remove its rows from the old shard at once; no rollback then.")
@move_options
@click.pass_context
def isolate(
    ctx: click.Context, /, tenant: str, target: str | None, whole: tuple[str, ...], no_soak: bool,
    config: Path | None, **given: Any,
) -> None:  # fmt: skip
    """Carry TENANT out of its shard into a new shard of its own, on the same server or another, and pin it there."""
    settings, options = settings_from(config), options_of(given, soak=not no_soak)
    expected = forecast(settings, tenant, target, whole=whole, options=options)
    _show(expected, as_json=given["as_json"] and given["dry_run"])
    if expected.refused:
        ctx.exit(1)
    go_on(f"Isolate tenant {tenant}?", yes=given["yes"], dry_run=given["dry_run"])
    begun = begin_isolate(settings, tenant, target, whole=whole, options=options)
    carry(settings, begun.id, "resume", options, as_json=given["as_json"])


def _show(found: IsolateForecast, *, as_json: bool) -> None:
    if as_json:
        print_json(asdict(found))
        return
    click.echo(
        f"tenant {found.tenant}: out of shard {found.shard} on {found.source} into shard {found.into_shard} on {found.target}; "
        f"{found.rows} rows, {readable_size(found.size)}; about {found.duration_s:.0f} s, writers of shard {found.shard} "
        f"held off for about {found.stall_ms:.0f} ms",
        err=True,
    )
    print_table(("TABLE", "ROWS"), sorted(found.tables.items()), err=True)
    if found.whole:
        click.echo(f"copied wholly: {', '.join(found.whole)}", err=True)
    show_findings(found.findings)
