"""``shardkit move`` and ``moves``: a shard goes to another server while it is written to."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import reduce
from pathlib import Path
from typing import Any

import click

from shardkit import ShardKit
from shardkit.catalog import journal
from shardkit.catalog.overview import opened
from shardkit.cli.common import (
    config_option,
    dry_run_option,
    go_on,
    json_option,
    print_json,
    print_table,
    readable_size,
    settings_from,
    yes_option,
)
from shardkit.cli.progress import shown
from shardkit.core.easing import Limits
from shardkit.core.moving import Step
from shardkit.errors import ShardKitError
from shardkit.move import rebalance as planning
from shardkit.move import run
from shardkit.move.checks import Finding
from shardkit.move.forecast import Forecast, forecast
from shardkit.move.options import MoveOptions
from shardkit.settings import Settings


def _duration(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> float | None:
    """Seconds of ``250ms``, ``5s``, ``2min``."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|min)", value)
    if not found:
        raise click.BadParameter("give a number with ms, s or min, such as 250ms")
    return float(found[1]) * {"ms": 0.001, "s": 1, "min": 60}[found[2]]


def _options(*options: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """All of *options*, listed in their order."""

    def decorated(command: Callable[..., Any]) -> Callable[..., Any]:
        return reduce(lambda inner, option: option(inner), reversed(options), command)

    return decorated


_FENCE = (
    click.option(
        "--max-stall", callback=_duration, default="250ms", show_default=True, help="Longest that writers are held off."
    ),
    click.option(
        "--give-up-after", callback=_duration, default="10min", show_default=True, help="How long the fence is tried for."
    ),
)
_LIMITS = (
    click.option("--kill-blockers-after", callback=_duration, help="End transactions in the fence's way once they are so old."),
    click.option("--max-lag", callback=_duration, help="Pause copying while a standby of the source is further behind."),
    click.option(
        "--max-source-load", type=click.IntRange(0), help="Pause copying while more other sessions are at work on the source."
    ),
    click.option(
        "--max-wal",
        type=click.IntRange(1),
        default=MoveOptions().wal_limit >> 20,
        show_default=True,
        help="Megabytes of WAL that may be held back on the source; above it the move stops.",
    ),
)
_COMMON = (config_option, dry_run_option, yes_option, json_option)

move_options = _options(*_FENCE, *_LIMITS, *_COMMON)
"""The options of commands that carry shards."""
ending_options = _options(*_FENCE, *_COMMON)
"""The options of commands that only take something away: writers may have to be held off for that."""


def options_of(given: dict[str, Any], *, soak: bool) -> MoveOptions:
    """What was given of either."""
    options = MoveOptions(
        budget_ms=max(10, round(given["max_stall"] * 1000)), give_up_after_s=given["give_up_after"], soak=soak
    )
    if "max_wal" not in given:
        return options
    return replace(
        options,
        kill_blockers_after_s=given["kill_blockers_after"],
        limits=Limits(lag_s=given["max_lag"], active=given["max_source_load"]),
        wal_limit=given["max_wal"] << 20,
    )


@click.command()
@click.argument("shard", type=int)
@click.option("--to", "target", required=True, help="The server it goes to.")
@click.option("--no-soak", is_flag=True, help="Drop the old place at once instead of keeping it as a follower for a rollback.")
@move_options
@click.pass_context
def move(ctx: click.Context, /, shard: int, target: str, no_soak: bool, config: Path | None, **given: Any) -> None:
    """Carry a shard to another server while it is read and written."""
    settings, options = settings_from(config), options_of(given, soak=not no_soak)
    expected = forecast(settings, shard, target, options=options)
    _show_forecast(expected, as_json=given["as_json"] and given["dry_run"])
    if expected.refused:
        ctx.exit(1)
    go_on(f"Move shard {shard}?", yes=given["yes"], dry_run=given["dry_run"])
    begun = run.begin(settings, shard, target, options=options)
    carry(settings, begun.id, "resume", options, as_json=given["as_json"])


@click.group("moves")
def moves_() -> None:
    """Moves: look at them, resume, abort, roll back, finish."""


@moves_.command("list")
@click.option("--all", "ended", is_flag=True, help="Those that have ended too.")
@config_option
@json_option
def list_(ended: bool, config: Path | None, as_json: bool) -> None:
    """Show moves that have not ended."""
    with opened(settings_from(config)) as catalog:
        found = journal.moves(catalog, ended=ended)
    if as_json:
        print_json([_as_dict(one) for one in found])
        return
    rows = [
        (m.id, _what(m), m.source, m.target, m.step.word, f"{m.updated_at:%Y-%m-%d %H:%M:%S}", m.problem or "") for m in found
    ]
    print_table(("ID", "SHARD", "FROM", "TO", "STEP", "SINCE", "PROBLEM"), rows)


@moves_.command()
@click.argument("move_id", type=int)
@config_option
@json_option
def show(move_id: int, config: Path | None, as_json: bool) -> None:
    """Show one move: its steps, its figures, and what it has made that is still there."""
    with opened(settings_from(config)) as catalog:
        found = journal.find(catalog, move_id)
        steps, made = journal.steps(catalog, move_id), journal.made(catalog, move_id)
    if as_json:
        print_json({**_as_dict(found), "steps": steps, "objects": made})
        return
    click.echo(f"move {found.id}: {_what(found)} from {found.source} to {found.target}, at step {found.step.word}")
    for key, value in found.facts.items():
        click.echo(f"  {key:<14} {value}")
    for step, lease, at in steps:
        click.echo(f"  {at:%H:%M:%S.%f}  {step:<10} session {lease}")
    for one in made:
        click.echo(f"  has on {one.server}: {one.kind} {one.name}")
    if found.problem:
        click.echo(f"  problem: {found.problem}")


take_over_option = click.option("--take-over", is_flag=True, help="End the session of another operator that works on it.")


def _action(name: str, about: str, question: str, options: Callable[..., Any] = move_options) -> None:
    @moves_.command(name, help=about)
    @click.argument("move_id", type=int)
    @take_over_option
    @options
    def command(move_id: int, take_over: bool, config: Path | None, **given: Any) -> None:
        _go_on(move_id, name, question, take_over=take_over, config=config, given=given)


def _go_on(move_id: int, name: str, question: str, *, take_over: bool, config: Path | None, given: dict[str, Any]) -> None:
    settings, options = settings_from(config), options_of(given, soak=True)
    with opened(settings) as catalog:
        found = journal.find(catalog, move_id)
    click.echo(f"move {move_id}: {_what(found)} from {found.source} to {found.target}, at step {found.step.word}", err=True)
    go_on(question, yes=given["yes"] or name == "resume", dry_run=given["dry_run"])
    if name == "rollback":
        move_id = run.begin_rollback(settings, move_id).id
    action: run.Action = "abort" if name == "abort" else "finish" if name == "finish" else "resume"
    carry(settings, move_id, action, options, as_json=given["as_json"], take_over=take_over)


_action("resume", "Go on with a move where it was stopped; nothing is copied twice once the copy is complete.", "")
_action("abort", "Undo a move whose fence is not committed; the source never stopped serving.", "Abort it?", ending_options)
_action("rollback", "Send a shard that soaks back to where it came from, without a copy.", "Go back?")


@moves_.command()
@click.argument("move_id", type=int, required=False)
@click.option("--all", "every", is_flag=True, help="Every move that soaks, one after another, instead of one MOVE_ID.")
@take_over_option
@ending_options
@click.pass_context
def finish(
    ctx: click.Context, /, move_id: int | None, every: bool, take_over: bool, config: Path | None, **given: Any
) -> None:  # fmt: skip
    """Drop the old place of a shard that soaks, with everything the move made."""
    if every == (move_id is not None):
        raise click.UsageError("give the number of one move, or --all")
    if every and take_over:
        raise click.UsageError("--take-over is for one move: `shardkit moves finish MOVE_ID --take-over`")
    if move_id is not None:
        _go_on(move_id, "finish", "Drop the follower?", take_over=take_over, config=config, given=given)
        return
    settings = settings_from(config)
    soaking = planning.to_finish(settings)
    _show_soaking(soaking, as_json=given["as_json"] and given["dry_run"])
    if soaking or given["dry_run"]:
        go_on(f"Drop the followers of {len(soaking)} moves?", yes=given["yes"], dry_run=given["dry_run"])
    with shown(as_json=given["as_json"], shards=len(soaking)) as display:
        count, failed = planning.finish_all(
            settings, soaking, options=options_of(given, soak=True), report=display.report, done=display.done
        )
    sum_up(ctx, f"finished {count} of {len(soaking)} moves", failed)


def _show_soaking(soaking: Sequence[journal.Move], *, as_json: bool) -> None:
    if as_json:
        print_json([_as_dict(one) for one in soaking])
        return
    rows = [(m.id, _what(m), m.source, m.target, f"{m.updated_at:%Y-%m-%d %H:%M:%S}") for m in soaking]
    print_table(("ID", "SHARD", "FOLLOWER ON", "LIVES ON", "SINCE"), rows, err=True)


def sum_up(ctx: click.Context, what: str, failed: Sequence[ShardKitError]) -> None:
    """Say how many of many moves were done; those that failed end the command with 1."""
    click.echo(what, err=True)
    if failed:
        click.echo(f"{len(failed)} failed; the first: {failed[0]}\n`shardkit moves list` shows them", err=True)
        ctx.exit(1)


def carry(
    settings: Settings, move_id: int, action: run.Action, options: MoveOptions, *, as_json: bool, take_over: bool = False
) -> None:
    """Go on with a move, showing how it goes, and say what came of it."""
    began = time.monotonic()
    try:
        with shown(as_json=as_json) as display, forgetting(settings, options) as options:
            ended = run.go_on(settings, move_id, action, options=options, report=display.report, take_over=take_over)
    except KeyboardInterrupt:
        click.echo(f"stopped; nothing is lost. Go on: shardkit moves resume {move_id} (or: moves abort {move_id})", err=True)
        raise click.exceptions.Exit(130) from None
    if as_json:
        print_json(_as_dict(ended))
        return
    facts = ended.facts
    click.echo(f"move {ended.id} is at step {ended.step.word} after {time.monotonic() - began:.1f} s", err=True)
    if ended.tenant is not None and ended.step in (Step.SOAK, Step.FINISHED):
        click.echo(f"tenant {ended.tenant} lives in shard {ended.into_shard} on {ended.target} now", err=True)
    if "stall_ms" in facts:
        click.echo(
            f"writers were held off for {facts['stall_ms']} ms at most (predicted {facts.get('predicted_ms')})", err=True
        )
    if ended.step is Step.SOAK:
        left = "the old place follows" if ended.tenant is None else "its rows in the old shard are hidden"
        click.echo(
            f"{left}: `shardkit moves rollback {ended.id}` goes back, `moves finish {ended.id}` drops "
            f"{'it' if ended.tenant is None else 'them'}",
            err=True,
        )


@contextmanager
def forgetting(settings: Settings, options: MoveOptions) -> Iterator[MoveOptions]:
    """*options* that can drop from the cache what it has of a tenant under a shard, where there is a cache."""
    if settings.redis_url is None:
        yield options
        return
    with ShardKit(settings=settings) as kit:
        yield replace(options, forget=lambda tenant, shard: kit.cache.forget(tenant, shard=shard))


def _show_forecast(found: Forecast, *, as_json: bool) -> None:
    if as_json:
        print_json(asdict(found))
        return
    click.echo(
        f"shard {found.shard}: {found.source} to {found.target}, epoch {found.epoch} to {found.epoch + 1}; "
        f"{found.tables} tables, about "
        f"{found.rows} rows, {readable_size(found.size)}; about {found.duration_s:.0f} s, writers held off for about "
        f"{found.stall_ms:.0f} ms",
        err=True,
    )
    show_findings(found.findings)


def show_findings(findings: Sequence[Finding]) -> None:
    """What the checks before a move found."""
    for finding in findings:
        click.echo(f"  {'REFUSED' if finding.refuses else 'note'}: {finding.what}: {finding.remedy}", err=True)


def _what(found: journal.Move) -> str:
    what = str(found.shard) if found.tenant is None else f"tenant {found.tenant}, {found.shard} to {found.into_shard}"
    return f"{what} (rollback of {found.of_move})" if found.of_move else what


def _as_dict(found: journal.Move) -> dict[str, Any]:
    return {**asdict(found), "step": found.step.word}
