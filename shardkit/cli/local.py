"""``shardkit local``: real servers on this machine, up, down and looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from shardkit.cli.common import BEHIND, json_option, print_json
from shardkit.local import run_local
from shardkit.local.cluster import attach, locked, remove_data
from shardkit.local.control import Control
from shardkit.local.state import HOST, REDIS, State

DEFAULT_SERVERS = 3

data_dir_option = click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".shardkit/local"),
    show_default=True,
    help="Where data, logs and addresses are.",
)


@click.group()
def local() -> None:
    """Real servers on this machine, for development and trying out."""


@local.command()
@click.option("--servers", type=click.IntRange(1, 64), help="PostgreSQL servers; more than before adds some.  [default: 3]")
@data_dir_option
@click.option(
    "--port",
    "ports",
    type=int,
    multiple=True,
    help="A port for each server in order, then for Redis.  [default: free ones]",
)
@click.option("--redis/--no-redis", default=None, help="Whether to run a Redis-protocol server.  [default: --redis]")
@json_option
def up(servers: int | None, data_dir: Path, ports: tuple[int, ...], redis: bool | None, as_json: bool) -> None:
    """Start the servers, or see that they run. The data stays between starts."""
    known = attach(data_dir)
    state = known[0] if known else None
    already = known[1].running() if known else None
    cluster = run_local(
        servers=servers or (len(state.ports) if state else DEFAULT_SERVERS),
        redis=redis if redis is not None else (state is None or state.redis_port is not None),
        data_dir=data_dir,
        ports=ports or None,
    )
    running = cluster.running()
    started = [name for name in running if name not in (already or {})]
    click.echo(f"started {', '.join(started)}" if started else "everything runs already", err=True)
    show(report(cluster.state, running), as_json=as_json)
    click.echo(f"addresses with passwords: {cluster.settings_file}", err=True)


@local.command()
@data_dir_option
@click.option("--purge", is_flag=True, help="Remove the data as well.")
@click.option("--yes", is_flag=True, help="Do not ask before removing data.")
def down(data_dir: Path, purge: bool, yes: bool) -> None:
    """Stop the servers. Their data stays, unless --purge."""
    home = data_dir.absolute()
    known = attach(home)
    if known is None:
        with locked(home):
            Control(home).down()  # a start that was killed early leaves its keeper, and nothing else
        click.echo(f"no local cluster in {home}", err=True)
        return
    if purge and not yes:
        click.confirm(f"Remove all data of {', '.join(known[0].ports)} in {home}?", abort=True, err=True)
    running = known[1].running() or {}
    ran = [name for name in known[0].all_ports if name in running]
    with locked(home):
        known[1].down()
        if purge:
            remove_data(home, whole=True)
    click.echo(f"stopped {', '.join(ran)}" if ran else "nothing was running", err=True)
    if purge:
        click.echo(f"removed the data in {home}", err=True)


@local.command()
@data_dir_option
@json_option
@click.pass_context
def status(ctx: click.Context, data_dir: Path, as_json: bool) -> None:
    """Show what runs. Exit code 3 unless everything does."""
    known = attach(data_dir)
    if known is None:
        click.echo(f"no local cluster in {data_dir.absolute()}; start one: shardkit local up", err=True)
        if as_json:
            print_json({"servers": {}})
        ctx.exit(BEHIND)
    found = report(known[0], known[1].running())
    show(found, as_json=as_json)
    if not all(server["pid"] for server in found["servers"].values()):
        ctx.exit(BEHIND)


def report(state: State, running: dict[str, int] | None) -> dict[str, Any]:
    """Name, address (no password) and process id (None: not running) of every server."""
    addresses = {server.name: server.dsn for server in state.servers}
    if state.redis_port:
        addresses[REDIS] = f"redis://{HOST}:{state.redis_port}/0"
    pids = running or {}
    return {"servers": {name: {"dsn": dsn, "pid": pids.get(name)} for name, dsn in addresses.items()}}


def show(found: dict[str, Any], *, as_json: bool) -> None:
    """Print a report, for people or for programs."""
    if as_json:
        print_json(found)
        return
    width = max(len(server["dsn"]) for server in found["servers"].values())
    for name, server in found["servers"].items():
        state = f"pid {server['pid']}" if server["pid"] else "not running"
        click.echo(f"{name:<6} {server['dsn']:<{width}}  {state}")
