"""The command line: parse, call, print. Commands are imported when they are asked for, so ``--help`` stays quick."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import click

from shardkit.errors import ShardKitError

# name -> (module beside this one, its command, one line for --help)
COMMANDS = {
    "demo": ("demo", "demo", "See it work: a local cluster, real data, routed sessions."),
    "local": ("local", "local", "Real servers on this machine, for development and trying out."),
    "init": ("init", "init", "Make a cluster of empty databases."),
    "status": ("status", "status", "Servers, shards, sizes, and whether they agree with the map."),
    "doctor": ("doctor", "doctor", "What is wrong, what could go wrong, and what to do about it."),
    "dashboard": ("dashboard", "dashboard", "A page with the shard map, moves and servers as they are."),
    "top": ("top", "top", "The same in the terminal."),
    "locate": ("routing", "locate", "Shard and server of a tenant, or of an id."),
    "id": ("routing", "id_", "Decode ids."),
    "server": ("server", "server", "Servers of the cluster: list, add, remove."),
    "migrate": ("migrate", "migrate", "Alembic revisions over every shard: run, resume, look, compare."),
    "move": ("moves", "move", "Carry a shard to another server while it is written to."),
    "isolate": ("isolate", "isolate", "Carry one tenant into a shard of its own while it is written to."),
    "moves": ("moves", "moves_", "Moves: list, show, resume, abort, rollback, finish."),
    "plan": ("rebalance", "plan", "Which shards would move where, and why."),
    "rebalance": ("rebalance", "rebalance", "Make the servers even."),
    "drain": ("rebalance", "drain", "Move every shard off a server."),
    "export": ("export", "export", "One query over every shard, into a file."),
    "pin": ("routing", "pin", "Send one tenant to a shard of your choice."),
    "cache": ("cache", "cache", "The read-through cache: does it keep its promise, what does Redis say."),
}


class LazyGroup(click.Group):
    """A group that imports the module of a command only to run it."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        """All names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  click's signature
        """The command, imported now."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(f"shardkit.cli.{module}"), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  click's signature
        """The table's lines, without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, about) for name, (_, _, about) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run it; an error of ours is one clear line on stderr and exit code 1."""
        try:
            return super().invoke(ctx)
        except ShardKitError as exc:
            click.echo(f"error: {exc}", err=True)
            ctx.exit(1)


def _show_version(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        try:
            click.echo(f"shardkit {version('shardkit')}")
        except PackageNotFoundError:
            click.echo("shardkit (not installed)")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and exit.",
)
def main() -> None:
    """Sharded multi-tenant data access for PostgreSQL.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 something is behind or not running.
    """
