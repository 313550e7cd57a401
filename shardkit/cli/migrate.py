"""``shardkit migrate``: Alembic revisions over every shard."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from shardkit.cli.common import (
    BEHIND,
    Shards,
    config_option,
    dry_run_option,
    go_on,
    json_option,
    models_from_here,
    print_json,
    print_table,
    settings_from,
    yes_option,
)
from shardkit.core.fleet import MOST_IN_ONE_TRANSACTION, Behind, Options, Why
from shardkit.schema.fleet import Fleet
from shardkit.schema.run import Report
from shardkit.schema.trees import own_tree

FAILED = 1
SHOWN = 20
F = TypeVar("F", bound=Callable[..., Any])


tree_option = click.option(
    "--tree",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    envvar="SHARDKIT_TREE",
    help="Directory of the Alembic tree.  [default: $SHARDKIT_TREE, else shardkit's own shard tree]",
)
phase_option = click.option(
    "--phase", type=click.Choice(["pre", "post"]), help='pre: stop before the first revision marked deploy = "post".'
)


def run_options(command: F) -> F:
    """Options of upgrade and downgrade."""
    for option in (
        click.option("--canary", default=1, show_default=True, type=click.IntRange(0), help="Shards that go first, alone."),
        click.option("--wave", default=512, show_default=True, type=click.IntRange(1), help="Shards in a wave."),
        click.option("--only", type=Shards(), help="Only these: 7 or 0-15,40."),
        click.option("--exclude", type=Shards(), default=frozenset(), help="Not these."),
        click.option(
            "--max-failures", default=10, show_default=True, type=click.IntRange(0), help="Stop when more shards have failed."
        ),
        click.option(
            "--parallel",
            default=4,
            show_default=True,
            type=click.IntRange(1, 64),
            help="Most connections to each server; revisions that are over in a moment take two.",
        ),
        click.option(
            "--batch",
            default=MOST_IN_ONE_TRANSACTION,
            show_default=True,
            type=click.IntRange(1, MOST_IN_ONE_TRANSACTION),
            help="Most shards in one transaction.",
        ),
        click.option(
            "--budget-ms", default=1000, show_default=True, type=click.IntRange(10), help="Longest a writer may wait behind us."
        ),
        click.option(
            "--patience", "patience_s", default=60.0, show_default=True, help="Seconds to try again for a shard others lock."
        ),
        click.option(
            "--wait-for-moves",
            "moves_wait_s",
            default=60.0,
            show_default=True,
            help="Seconds to wait for shards that are being moved.",
        ),
        click.option(
            "--finish-soaks",
            is_flag=True,
            help="End the soak of moves that are in the way: their old copies go, and with them the way back without a copy.",
        ),
        dry_run_option,
        yes_option,
        json_option,
    ):
        command = option(command)
    return command


@click.group()
def migrate() -> None:
    """Alembic revisions over every shard: run, resume, look, compare.

    Each shard's own version row says where it is. Killed at any moment, run the same again: only what is behind is done.
    """
    models_from_here()


@migrate.command()
@click.argument("revision", default="head")
@config_option
@tree_option
@phase_option
@run_options
@click.pass_context
def upgrade(ctx: click.Context, /, revision: str, **given: Any) -> None:
    """Take every shard up to REVISION (head). Exit code 1 if a shard is not there, 3 if only moves kept it."""
    _run(ctx, revision, "up", **given)


@migrate.command()
@click.argument("revision")
@config_option
@tree_option
@run_options
@click.pass_context
def downgrade(ctx: click.Context, /, revision: str, **given: Any) -> None:
    """Take every shard down to REVISION, or to base. Asks for its name, for data may go with it."""
    _run(ctx, revision, "down", phase=None, **given)


def _run(
    ctx: click.Context,
    revision: str,
    direction: Any,
    *,
    config: Path | None,
    tree: Path | None,
    phase: str | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
    finish_soaks: bool,
    **options: Any,
) -> None:
    from shardkit.move.run import go_on as go_on_with

    settings = settings_from(config)
    fleet = Fleet(settings, tree or own_tree("shard"))
    chosen = Options(**options)
    if dry_run or not yes:
        planned = fleet.migrate(revision, direction=direction, options=chosen, phase=phase, dry_run=True)
        _show_plan(planned, as_json=as_json and dry_run)
        if planned.planned is not None and planned.planned.empty and not planned.behind:
            if as_json and not dry_run:
                print_json(_as_json(planned))
            return
        go_on(f"Go {direction} to {revision}?", yes=yes, dry_run=dry_run, name=revision if direction == "down" else None)
    with bar(quiet=as_json) as progress:
        report = fleet.migrate(
            revision,
            direction=direction,
            options=chosen,
            phase=phase,
            finish_soak=(lambda move: go_on_with(settings, move, "finish")) if finish_soaks else None,
            progress=progress,
        )
    if as_json:
        print_json(_as_json(report))
    else:
        click.echo(f"run {report.run}: {len(report.done)} shards migrated, {report.current} at {_goal(report, phase)}")
        if report.mended:
            click.echo(f"{len(report.mended)} shards lacked tables of shardkit's own, and have them now")
        _show_behind(report.behind)
    if not report.complete:
        reasons = {one.why for one in report.behind} - {Why.LEFT_OUT}
        ctx.exit(BEHIND if reasons == {Why.MOVING} else FAILED)


@migrate.command()
@click.argument("revision", default="head")
@config_option
@tree_option
@phase_option
@json_option
@click.pass_context
def status(ctx: click.Context, revision: str, config: Path | None, tree: Path | None, phase: str | None, as_json: bool) -> None:
    """Name the shards that are behind REVISION (head), and why. Exit code 3 if there are any."""
    fleet = Fleet(settings_from(config), tree or own_tree("shard"))
    report = fleet.status(revision, phase=phase)
    runs = fleet.runs()
    if as_json:
        print_json({**_as_json(report), "runs": runs})
    else:
        for run in runs[:1]:
            ended = f", ended {run['ended_at']:%Y-%m-%d %H:%M:%S}" if run["ended_at"] else ""
            click.echo(f"last run {run['run']}: {run['direction']} to {run['target']}, {run['state']}{ended} ({run['runner']})")
        click.echo(f"{report.current} shards at {_goal(report, phase)}, {len(report.behind)} behind")
        _show_behind(report.behind)
    if report.behind:
        ctx.exit(BEHIND)


@migrate.command()
@click.argument("revision")
@config_option
@tree_option
@click.option("--only", type=Shards(), help="Only these: 7 or 0-15,40.")
@yes_option
@click.pass_context
def stamp(
    ctx: click.Context, revision: str, config: Path | None, tree: Path | None, only: frozenset[int] | None, yes: bool
) -> None:  # fmt: skip
    """Say that shards are at REVISION without running anything, for shards made from models. Exit code 3 if moves kept some."""
    fleet = Fleet(settings_from(config), tree or own_tree("shard"))
    go_on(f"Say that shards are at {revision}, whatever is in them?", yes=yes, dry_run=False)
    click.echo(f"{fleet.stamp(revision, only=only)} shards stamped")
    behind = [one for one in fleet.status(revision).behind if only is None or one.shard in only]
    _show_behind(behind)
    if behind:
        ctx.exit(BEHIND)


@migrate.command()
@click.option("-m", "--message", required=True, help="What the revision does; becomes part of its file's name.")
@click.option("--autogenerate", is_flag=True, help="Fill it with the differences between the models and one shard.")
@click.option("--models", metavar="MODULE:BASE", help="The models to compare with, if the tree's env.py does not name them.")
@click.option("--shard", type=int, help="The shard to compare with.  [default: the lowest]")
@config_option
@tree_option
def revision(
    message: str,
    *,
    autogenerate: bool,
    models: str | None,
    shard: int | None,
    config: Path | None,
    tree: Path | None,
) -> None:
    """Write a new revision file into the tree."""
    from shardkit.schema.revise import new_revision

    if tree is None:
        raise click.UsageError("--tree: shardkit's own tree takes no revisions of yours; name the directory of yours")
    settings = settings_from(config) if autogenerate else None
    click.echo(new_revision(tree, message, settings=settings, models=models, shard=shard))


@migrate.command()
@click.option("--models", metavar="MODULE:BASE", required=True, help="The models.")
@config_option
@yes_option
def shared(models: str, config: Path | None, yes: bool) -> None:
    """Make the global and reference tables of the models that are not there yet, and let every server follow the latter.

    For new models, and after a server was added. Tables that are there are not changed.
    """
    from shardkit.schema.blueprint import models_metadata
    from shardkit.schema.shared import make_shared_tables

    settings, metadata = settings_from(config), models_metadata(models)
    go_on("Make global and reference tables, with a subscription on every server?", yes=yes, dry_run=False)
    in_one_place, everywhere = make_shared_tables(settings, metadata)
    click.echo(
        f"global: {', '.join(in_one_place) or 'none'}; reference, equal on every server: {', '.join(everywhere) or 'none'}"
    )


@migrate.command()
@config_option
@tree_option
@click.option("--models", metavar="MODULE:BASE", help="Compare with these models instead of the tree.")
@click.option("--shard", type=int, help="Compare with this shard instead.")
@click.option("--only", type=Shards(), help="Look at these only.")
@json_option
@click.pass_context
def check(ctx: click.Context, /, config: Path | None, tree: Path | None, as_json: bool, **given: Any) -> None:
    """Compare every shard's real structure with the reference; say what differs as SQL.

    Exit code 3 if anything does, 1 if a server does not answer (the others are looked at).
    """
    from shardkit.schema.drift import check_fleet

    refused: list[str] = []
    drifts, looked = check_fleet(settings_from(config), tree or own_tree("shard"), refused=refused, **given)
    if as_json:
        print_json({"looked_at": looked, "drifts": [asdict(one) for one in drifts], "refused": refused})
    else:
        for one in drifts:
            click.echo(f"-- shard {one.shard} ({one.schema} on {one.server})")
            for line in one.differences:
                click.echo(line)
        click.echo(f"{looked} shards looked at, {len(drifts)} differ", err=True)
    for one_said in refused:
        click.echo(f"error: {one_said}", err=True)
    if refused:
        ctx.exit(FAILED)
    if drifts:
        ctx.exit(BEHIND)


def _show_plan(report: Report, *, as_json: bool) -> None:
    planned = report.planned
    assert planned is not None
    if as_json:
        print_json(
            {
                **_as_json(report),
                "waves": planned.waves,
                "steps": {str(shard): [step.revision for step in steps] for shard, steps in planned.steps.items()},
            }
        )
        return
    ways = Counter(tuple(step.revision for step in steps) for steps in planned.steps.values())
    click.echo(f"{report.current} shards need nothing, {len(planned.steps)} are to be migrated", err=True)
    for way, count in ways.most_common(SHOWN):
        click.echo(f"  {count} shards: {' -> '.join(way)}", err=True)
    for name, why in report.online.items():
        click.echo(f"  revision {name} runs online, by Alembic in worker processes: {why}", err=True)
    _show_behind(report.behind, err=True)


def _show_behind(behind: Sequence[Behind], *, err: bool = False) -> None:
    for why, count in Counter(one.why for one in behind).items():
        click.echo(f"  {count} behind: {why.value}", err=err)
    rows = [
        (one.shard, one.server, ", ".join(one.version) if one.version else "-", one.missing or "?", one.why.value, one.detail)
        for one in behind[:SHOWN]
    ]
    if rows:
        print_table(("shard", "server", "version", "missing", "why", "detail"), rows, err=err)
    if len(behind) > SHOWN:
        click.echo(f"  ... and {len(behind) - SHOWN} more: --json names all", err=err)


def _goal(report: Report, phase: str | None) -> str:
    """Where shards that need nothing are; in the phase before a deploy that may be short of the target."""
    return f"{report.target or 'base'}{', or before the first post-deploy revision on the way' if phase == 'pre' else ''}"


def _as_json(report: Report) -> dict[str, Any]:
    return {
        "target": report.target,
        "direction": report.direction,
        "run": report.run,
        "complete": report.complete,
        "current": report.current,
        "migrated": list(report.done),
        "mended": list(report.mended),
        "behind": [{**asdict(one), "why": one.why.value} for one in report.behind],
        "online": dict(report.online),
        "seconds": round(report.seconds, 3),
    }


class Rate(ProgressColumn):
    """Shards a second, of late."""

    def render(self, task: Task) -> Text:
        """Nothing until there is something to reckon with."""
        return Text(f"{task.speed:.{0 if task.speed >= 10 else 1}f} shards/s" if task.speed else "")


@contextmanager
def bar(
    console: Console | None = None, *, quiet: bool = False, clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[int, int, int], None]]:
    """Shards done, of how many, how many a second, how long still, how many failed."""
    columns = (
        TextColumn("migrating"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[failed]}", style="red"),
    )
    with Progress(*columns, console=console or Console(stderr=True), disable=quiet, get_time=clock) as shown:
        task = shown.add_task("", total=None, failed="")

        def heard(done: int, total: int, failed: int) -> None:
            shown.update(task, completed=done + failed, total=total, failed=f"{failed} failed" if failed else "")

        yield heard
