"""``shardkit dashboard``: the page that shows the cluster, on this machine."""

from __future__ import annotations

import logging
from pathlib import Path

import click

from shardkit.cli.common import config_option, settings_from
from shardkit.errors import SettingsError


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Loopback address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8421, show_default=True, help="0: any free one.")
@click.option("--every", type=click.FloatRange(0.2, 60), default=1.0, show_default=True, help="Seconds between two looks.")
@click.option(
    "--allow-changes", is_flag=True, help="Let moves be begun, resumed, aborted, rolled back and finished on the page."
)
@config_option
def dashboard(host: str, port: int, every: float, allow_changes: bool, config: Path | None) -> None:
    """Serve a page with the shard map, moves and servers as they are, until Ctrl-C.

    Its address has a token in it: whoever has it may look. It is reached from this machine only; from elsewhere use an SSH
    tunnel. It changes nothing, unless --allow-changes.
    """
    try:
        from shardkit.contrib.dashboard.serve import make_dashboard_server
    except ImportError as exc:
        raise SettingsError(f'{exc.name} is missing: pip install "shardkit[dashboard]"') from exc
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # its lines would show the token
    server, feed, address = make_dashboard_server(
        settings_from(config), host=host, port=port, allow_changes=allow_changes, every_s=every
    )
    click.echo(address)
    click.echo("Ctrl-C ends it" + ("; changes are allowed" if allow_changes else ""), err=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        click.echo("", err=True)
    finally:
        feed.close()
        server.server_close()
