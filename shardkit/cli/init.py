"""``shardkit init``: from empty databases to a cluster."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from shardkit.cli.common import (
    config_option,
    dry_run_option,
    go_on,
    models_from_here,
    named_pairs,
    print_table,
    settings_from,
    yes_option,
)
from shardkit.core.hashing import MAX_SHARDS, TENANT_TYPES
from shardkit.schema.blueprint import Blueprint, from_models, from_tree
from shardkit.schema.bootstrap import InitPlan, carry_out, plan_init


@click.command()
@click.option("--shards", type=int, default=256, show_default=True, help="Logical shards: a power of two up to 8192, for good.")
@click.option(
    "--tenant-type",
    type=click.Choice(list(TENANT_TYPES)),
    default="str",
    show_default=True,
    help="Type of tenant keys, for good.",
)
@click.option(
    "--server",
    "servers",
    multiple=True,
    metavar="NAME=URL",
    help="A database for shards. Its password is better off in the settings.  [default: their servers]",
)
@click.option("--weight", "weights", multiple=True, metavar="NAME=W", help="Share of a server.  [default: 1]")
@click.option("--models", metavar="PKG.MOD:BASE", help="Declarative base or MetaData with the tables of every shard.")
@click.option("--tree", type=click.Path(file_okay=False, path_type=Path), help="Alembic tree with the tables of every shard.")
@config_option
@dry_run_option
@yes_option
def init(
    shards: int,
    tenant_type: str,
    servers: tuple[str, ...],
    weights: tuple[str, ...],
    models: str | None,
    tree: Path | None,
    config: Path | None,
    dry_run: bool,
    yes: bool,
) -> None:
    """Make a cluster of empty databases: the catalog, and every shard on its server.

    An init that was stopped is gone on with by running it again.
    """
    if models and tree:
        raise click.UsageError("--models and --tree say the same thing twice: give one")
    settings = settings_from(config)
    plan = plan_init(
        settings,
        servers=named_pairs(servers, option="--server") or settings.servers,
        shard_count=shards,
        tenant_type="int" if tenant_type == "int" else "str",
        weights={name: weight_of(text) for name, text in named_pairs(weights, option="--weight").items()},
    )
    blueprint = _blueprint(models, tree)
    show(plan, blueprint)
    go_on("Make this cluster?", yes=yes, dry_run=dry_run)
    columns = (TextColumn("making shards"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task("", total=plan.shard_count)
        made = carry_out(settings, plan, blueprint=blueprint, progress=lambda done: bar.advance(task, done))
    click.echo(f"ready: {made.shard_count} shards on {len(made.servers)} servers, map version {made.version}", err=True)


def weight_of(text: str) -> float:
    """A weight from the command line."""
    try:
        return float(text)
    except ValueError:
        raise click.UsageError(f"a weight is a number, not {text!r}") from None


def _blueprint(models: str | None, tree: Path | None) -> Blueprint:
    if models:
        models_from_here()
        return from_models(models)
    return from_tree(tree) if tree else Blueprint()


def show(plan: InitPlan, blueprint: Blueprint) -> None:
    """The plan, for people."""
    click.echo(
        f"{'go on with the init of' if plan.resumed else 'a new cluster:'} {plan.shard_count} shards, "
        f"{plan.tenant_type} tenants, {'with' if blueprint.sql else 'without'} tables",
        err=True,
    )
    rows = [(s.name, s.dsn, f"{s.weight:g}", len(plan.shards_on(s.name))) for s in plan.servers.values()]
    print_table(("SERVER", "DATABASE", "WEIGHT", "SHARDS"), rows, err=True)
    if plan.shard_count == MAX_SHARDS:
        click.echo(
            f"warning: {MAX_SHARDS} shards take every number an id has room for, so no tenant can ever be isolated into one "
            f"of its own. If one may outgrow the others, take {MAX_SHARDS // 2}",
            err=True,
        )
