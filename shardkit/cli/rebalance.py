"""``shardkit plan``, ``rebalance`` and ``drain``: many shards go where they should be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from shardkit.catalog.journal import Move
from shardkit.catalog.loads import TenantLoad, lately
from shardkit.catalog.overview import current_map, opened
from shardkit.cli.common import (
    BEHIND,
    config_option,
    go_on,
    json_option,
    print_json,
    print_table,
    readable_size,
    settings_from,
)
from shardkit.cli.moves import move_options, options_of, sum_up
from shardkit.cli.progress import shown
from shardkit.core.moving import Step
from shardkit.core.placement import Plan
from shardkit.move import rebalance as planning
from shardkit.settings import Settings

UNITS = {"count": "shards", "bytes": "bytes", "load": "units of work in the last hour"}

soak_option = click.option(
    "--soak/--no-soak",
    help="Keep each old place as a follower for a rollback, until `moves finish --all`.  [default: no-soak]",
)


@click.command()
@click.option(
    "--by", type=click.Choice(["count", "bytes", "load"]), default="count", show_default=True, help="What is to be even."
)
@click.option("--without", help="As if this server got no shards.")
@config_option
@json_option
def plan(by: planning.By, without: str | None, config: Path | None, as_json: bool) -> None:
    """Show which shards would move where, and why."""
    settings = settings_from(config)
    _show_plan(settings, planning.make_plan(settings, by=by, without=without), by=by, as_json=as_json)
    _show_waiting(planning.waiting(settings, without=without))


@click.command()
@click.option(
    "--by", type=click.Choice(["count", "bytes", "load"]), default="count", show_default=True, help="What is to be even."
)
@click.option("--parallel", type=click.IntRange(1, 16), default=1, show_default=True, help="Moves at a time.")
@soak_option
@move_options
@click.pass_context
def rebalance(ctx: click.Context, /, by: planning.By, parallel: int, config: Path | None, **given: Any) -> None:
    """Make the servers even, moving as few shards as possible. Exit code 3 where a move that stopped keeps one back."""
    settings = settings_from(config)
    _carry_plan(ctx, settings, planning.make_plan(settings, by=by), by, parallel, given)


@click.command()
@click.argument("server")
@click.option("--parallel", type=click.IntRange(1, 16), default=1, show_default=True, help="Moves at a time.")
@soak_option
@move_options
@click.pass_context
def drain(ctx: click.Context, /, server: str, parallel: int, config: Path | None, **given: Any) -> None:
    """Move every shard off SERVER; it gets no new ones from then on. Exit code 3 where a move that stopped keeps one back."""
    settings = settings_from(config)
    found = planning.make_plan(settings, without=server)
    _carry_plan(ctx, settings, found, "count", parallel, given, draining=server)


def _carry_plan(
    ctx: click.Context, settings: Settings, found: Plan, by: planning.By, parallel: int, given: dict[str, Any],
    draining: str | None = None,
) -> None:  # fmt: skip
    _show_plan(settings, found, by=by, as_json=given["as_json"] and given["dry_run"], talk=given["as_json"])
    waiting = planning.waiting(settings, without=draining)
    _show_waiting(waiting)
    if found.moves or given["dry_run"]:
        go_on(f"Move {len(found.moves)} shards?", yes=given["yes"], dry_run=given["dry_run"])
    if draining is not None:
        planning.drain(settings, draining)
    try:
        with shown(as_json=given["as_json"], shards=len(found.moves)) as display:
            count, failed = planning.carry_out(
                settings,
                found.moves,
                parallel=parallel,
                options=options_of(given, soak=given["soak"]),
                report=display.report,
                done=display.done,
            )
    except KeyboardInterrupt:
        click.echo(
            "stopped; nothing is lost. `shardkit moves list` shows what is to be gone on with (`moves resume`, or `abort`); "
            "then run this again",
            err=True,
        )
        raise click.exceptions.Exit(130) from None
    if given["soak"] and count:
        click.echo("the old places follow: `shardkit moves finish --all` drops them", err=True)
    sum_up(ctx, f"moved {count} of {len(found.moves)} shards", failed)
    if waiting:
        ctx.exit(BEHIND)


def _show_plan(settings: Settings, found: Plan, *, by: str, as_json: bool, talk: bool = False) -> None:
    """The plan on stdout; with *talk* on stderr, where what comes after it is the command's data."""
    shardmap = current_map(settings)
    weighed = planning.sizes(settings, shardmap)
    with opened(settings) as catalog:
        hot = lately(catalog, tenant_type=shardmap.tenant_type).tenants
    size = sum(weighed.get(one.shard, 0) for one in found.moves)
    if as_json:
        moves = [{**asdict(one), "bytes": weighed.get(one.shard)} for one in found.moves]
        print_json(
            {"by": by, "moves": moves, "before": dict(found.before), "after": dict(found.after), "oversized": found.oversized}
        )
        return
    rows = [(one.shard, one.source or "", one.target, readable_size(weighed.get(one.shard, 0))) for one in found.moves]
    print_table(("SHARD", "FROM", "TO", "SIZE"), rows, err=talk)
    for name in found.after:
        click.echo(f"{name}: {found.before[name]:g} to {found.after[name]:g} {UNITS[by]}", err=True)
    click.echo(
        f"{len(found.moves)} moves, {readable_size(size)}, about {len(found.moves) + size / 40e6:.0f} s one after another",
        err=True,
    )
    for shard in found.oversized:
        click.echo(
            f"shard {shard} alone is more than a server's share: isolate its largest tenant{_hottest(hot, shard)}", err=True
        )


def _show_waiting(waiting: Sequence[Move]) -> None:
    for move in waiting:
        way = "finish" if move.step is Step.SOAK else "resume"
        click.echo(
            f"shard {move.shard} is left out: its move {move.id} from {move.source} to {move.target} is at step "
            f"{move.step.word}; `shardkit moves {way} {move.id}`, then run this again",
            err=True,
        )


def _hottest(hot: Sequence[TenantLoad], shard: int) -> str:
    return next((f", which by units of work is {one.tenant}" for one in hot if one.shard == shard), "")
