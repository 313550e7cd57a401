"""``shardkit server``: which servers a cluster has, and their coming and going."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from shardkit.catalog.membership import carry_out_change, join, leave, plan_change, plan_joining, plan_leaving
from shardkit.catalog.overview import current_map
from shardkit.catalog.standbys import carry_out, plan_replica, plan_without, standbys
from shardkit.cli.common import (
    BEHIND,
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
from shardkit.core.names import check_server_name
from shardkit.core.shardmap import ServerState


@click.group()
def server() -> None:
    """Servers of the cluster."""


@server.command("list")
@config_option
@json_option
def list_(config: Path | None, as_json: bool) -> None:
    """Show the servers of the map; asks none of them (that is `shardkit status`)."""
    shardmap = current_map(settings_from(config))
    servers = [(s.name, s.dsn, s.weight, s.state.value, len(shardmap.shards_on(s.name))) for s in shardmap.servers.values()]
    if as_json:
        print_json([dict(zip(("name", "dsn", "weight", "state", "shards"), row, strict=True)) for row in servers])
    else:
        print_table(("SERVER", "DATABASE", "WEIGHT", "STATE", "SHARDS"), [(n, d, f"{w:g}", s, c) for n, d, w, s, c in servers])


@server.command()
@click.argument("name")
@click.argument("url", required=False)
@click.option("--weight", type=float, default=1.0, show_default=True, help="Its share of the shards.")
@config_option
@dry_run_option
@yes_option
def add(name: str, url: str | None, weight: float, config: Path | None, dry_run: bool, yes: bool) -> None:
    """Add the empty database behind URL as a server NAME. No shard is on it until some are moved there.

    Without URL it is that of the settings' [servers.NAME], which keeps a password out of the list of processes.
    """
    settings = settings_from(config)
    url = url or settings.servers.get(check_server_name(name))
    if url is None:
        raise click.UsageError(f"give a URL: the settings have no [servers.{name}]")
    joining = plan_joining(settings, name, url, weight=weight)
    if joining.there:
        click.echo(f"server {name!r} is in the map already", err=True)
        return
    click.echo(f"add server {name!r}: {joining.server.dsn}, weight {weight:g}, without a shard", err=True)
    go_on("Add it?", yes=yes, dry_run=dry_run)
    join(settings, joining)
    click.echo(f"done; where it needs other credentials than the catalog, programs' settings need a [servers.{name}]", err=True)


@server.command()
@click.argument("name")
@click.option("--url", help="Where its database is now. What it leaves out (the credentials) is as before.")
@click.option("--weight", type=float, help="Its share of the shards; `shardkit rebalance` brings it about.")
@click.option(
    "--state",
    type=click.Choice([state.value for state in ServerState]),
    help="active; draining: gets no more shards (as after `shardkit drain`); down: a rebalance leaves it alone.",
)
@config_option
@dry_run_option
@yes_option
def change(
    name: str, url: str | None, weight: float | None, state: str | None, config: Path | None, dry_run: bool, yes: bool
) -> None:
    """Change what the map says of the server NAME: its address, weight or state. No shard is moved."""
    settings = settings_from(config)
    if (url, weight, state) == (None, None, None):
        raise click.UsageError("say what to change: --url, --weight or --state")
    changing = plan_change(settings, name, url=url, weight=weight, state=None if state is None else ServerState(state))
    if not changing.needed:
        click.echo(f"the map says so of server {name!r} already", err=True)
        return
    old, new = changing.before, changing.after
    weights, states = (f"{old.weight:g}", f"{new.weight:g}"), (old.state.value, new.state.value)
    for what, (was, will) in {"address": (old.dsn, new.dsn), "weight": weights, "state": states}.items():
        if was != will:
            click.echo(f"{what} of server {name!r}: {was} -> {will}", err=True)
    if changing.followed:
        click.echo(
            f"not ended: moves {', '.join(map(str, changing.followed))}. What they made follows the old address: end them "
            "(`shardkit moves finish` or `abort`), before this where the server still answers there",
            err=True,
        )
    go_on("Change it?", yes=yes, dry_run=dry_run)
    carry_out_change(settings, changing)
    click.echo("done", err=True)
    if old.dsn != new.dsn:
        click.echo(f"programs whose settings have a [servers.{name}] go by that: correct it there", err=True)


@server.command()
@click.argument("name")
@click.option("--unreachable", is_flag=True, help="Do not touch its database: it is gone for good.")
@config_option
@dry_run_option
@yes_option
def remove(name: str, unreachable: bool, config: Path | None, dry_run: bool, yes: bool) -> None:
    """Take the server NAME, which holds no shard any more, out of the cluster."""
    settings = settings_from(config)
    leaving = plan_leaving(settings, name)
    click.echo(f"remove server {name!r}: {leaving.dsn}, which holds no shard", err=True)
    go_on("The cluster forgets it.", yes=yes, dry_run=dry_run, name=name)
    leave(settings, leaving, unreachable=unreachable)
    click.echo("done; its database may be dropped", err=True)


@server.group()
def replica() -> None:
    """Replicas of a server: standbys that may serve reads."""


@replica.command("list")
@config_option
@json_option
@click.pass_context
def list_replicas(ctx: click.Context, config: Path | None, as_json: bool) -> None:
    """Ask every replica of the map how far it is. Exit code 3 when one cannot serve reads."""
    found = standbys(settings_from(config))
    if as_json:
        print_json([asdict(standby) for standby in found])
    else:
        rows = [
            (
                s.server,
                s.dsn,
                "-" if s.timeline is None else s.timeline,
                "-" if s.lag_bytes is None else readable_size(s.lag_bytes),
                s.problem or "ok",
            )
            for s in found
        ]
        print_table(("SERVER", "REPLICA", "TIMELINE", "BEHIND", "HEALTH"), rows)
    if any(standby.problem for standby in found):
        ctx.exit(BEHIND)


@replica.command("add")
@click.argument("name")
@click.argument("url")
@config_option
@dry_run_option
@yes_option
def add_replica(name: str, url: str, config: Path | None, dry_run: bool, yes: bool) -> None:
    """Let the streaming standby behind URL serve reads of the server NAME.

    Its credentials, and its database if URL names none, are those of the server: URL needs no password.
    """
    settings = settings_from(config)
    planned = plan_replica(settings, name, url)
    if not planned.needed:
        click.echo(f"server {name!r} has this replica already", err=True)
        return
    click.echo(f"add to server {name!r} the replica {planned.dsn}", err=True)
    go_on("Add it?", yes=yes, dry_run=dry_run)
    carry_out(settings, planned)
    click.echo("done; programs read from it where kit.read() allows a replica", err=True)


@replica.command("remove")
@click.argument("name")
@click.argument("url")
@config_option
@dry_run_option
@yes_option
def remove_replica(name: str, url: str, config: Path | None, dry_run: bool, yes: bool) -> None:
    """Send no more reads to the replica of the server NAME behind URL (as `replica list` shows it). It need not answer."""
    settings = settings_from(config)
    planned = plan_without(settings, name, url)
    click.echo(f"take from server {name!r} the replica {planned.dsn}; {len(planned.replicas)} are left", err=True)
    go_on("Take it out?", yes=yes, dry_run=dry_run)
    carry_out(settings, planned)
    click.echo("done; programs that hear of it read elsewhere at once, the others within their poll_interval_s", err=True)
