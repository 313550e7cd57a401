"""``flask shardkit ...``: the same commands, with the settings of the application that ``flask --app`` names."""

from __future__ import annotations

import click

from shardkit.cli import LazyGroup
from shardkit.contrib.flask.extension import NAME


@click.group(cls=LazyGroup)
@click.pass_context
def shardkit(ctx: click.Context) -> None:
    """Shards, moves and migrations of this application's cluster."""
    mounted = ctx.obj.load_app().extensions.get(NAME)
    if mounted is None:
        raise click.UsageError("this application has no shardkit: call init_app(app) of your ShardKit")
    ctx.obj = mounted.settings
