"""``shardkit locate``, ``id`` and ``pin``: where a tenant or an id belongs, and sending a tenant elsewhere."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from shardkit.catalog.overview import current_map
from shardkit.catalog.pinning import carry_out, plan_pin
from shardkit.cli.common import config_option, dry_run_option, go_on, json_option, print_json, settings_from, yes_option
from shardkit.core.hashing import tenant_from_text
from shardkit.core.ids import unpack
from shardkit.core.shardmap import Route
from shardkit.errors import CatalogError

MOST_DIGITS = 19
"""Of a 64-bit id."""


@click.command()
@click.argument("key", metavar="TENANT|ID")
@click.option("--id", "is_id", is_flag=True, help="The argument is an id, not a tenant: the shard it was born in.")
@config_option
@json_option
def locate(key: str, is_id: bool, config: Path | None, as_json: bool) -> None:
    """Show shard, schema and server of a tenant, or of an id. A negative number comes after `--`."""
    shardmap = current_map(settings_from(config))
    born = decoded(key) if is_id else None
    if born is not None:
        route = shardmap.route(born["shard"])
    else:
        route = shardmap.locate(tenant_from_text(key, shardmap.tenant_type))
    pinned = not is_id and route.tenant in shardmap.pins
    if as_json:
        print_json({**route._asdict(), "pinned": pinned, "born": born and born["born"]})
        return
    click.echo(f"shard {route.shard}, schema {route.schema}, server {route.server}{' (pinned)' if pinned else ''}")
    if born is not None:
        click.echo(f"born {born['born']}")


@click.group("id")
def id_() -> None:
    """Ids, which carry the time and the shard of a row's birth."""


@id_.command()
@click.argument("key", metavar="ID")
@json_option
def decode(key: str, as_json: bool) -> None:
    """Show what an id says. Asks no server."""
    parts = decoded(key)
    if as_json:
        print_json(parts)
    else:
        click.echo(f"born {parts['born']} in shard {parts['shard']}, number {parts['sequence']} of its millisecond")


def decoded(text: str) -> dict[str, Any]:
    """The parts of an id given as *text*; IdError for a number that is none."""
    if not (text.isascii() and text.isdecimal() and len(text) <= MOST_DIGITS):
        raise click.UsageError(f"an id is a whole number above 0, not {text[:40]!r}")
    parts = unpack(int(text))
    born = datetime.fromtimestamp(parts.ms / 1000, UTC).isoformat(timespec="milliseconds")
    return {"id": int(text), "born": born, "ms": parts.ms, "shard": parts.shard, "sequence": parts.sequence}


@click.command()
@click.argument("tenant")
@click.argument("shard", type=int, required=False)
@click.option("--remove", is_flag=True, help="Take the tenant's pin away.")
@click.option("--force", is_flag=True, help="Even where rows of the tenant would stay behind, out of its sight.")
@config_option
@dry_run_option
@yes_option
def pin(
    tenant: str,
    shard: int | None,
    remove: bool,
    force: bool,
    config: Path | None,
    dry_run: bool,
    yes: bool,
) -> None:
    """Send a TENANT to a SHARD of your choice, against its hash.

    A pin moves no rows: it is for tenants that have none yet. Rows in tables with a column tenant_id are looked for, and a
    tenant that has some is refused; of other tables shardkit cannot know.
    """
    if remove == (shard is not None):
        raise click.UsageError("give a SHARD, or --remove")
    settings = settings_from(config)
    plan = plan_pin(settings, tenant, shard=shard)
    if plan.there:
        click.echo("so it is already", err=True)
        return
    click.echo(f"now:  {_place(plan.now)}\nthen: {_place(plan.then)}", err=True)
    if plan.tables:
        left = f"the tenant has rows in {', '.join(plan.tables)} of {plan.now.schema}, and a pin moves no rows"
        if not force:
            raise CatalogError(
                f"{left}: they would be out of its sight; nothing was changed. Isolate the tenant, or give --force"
            )
        click.echo(f"warning: {left}: they stay behind", err=True)
    elif plan.now.shard != plan.then.shard:
        click.echo(
            "warning: a pin moves no rows; what tables without tenant_id hold of this tenant would stay behind", err=True
        )
    go_on("Change the map?", yes=yes, dry_run=dry_run)
    carry_out(settings, plan)
    click.echo("done", err=True)


def _place(route: Route) -> str:
    return f"shard {route.shard}, schema {route.schema}, server {route.server}"
