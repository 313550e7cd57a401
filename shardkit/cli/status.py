"""``shardkit status``: servers, shards, sizes and the map's version, and whether they agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from shardkit.catalog.overview import Overview, overview
from shardkit.cli.common import BEHIND, config_option, json_option, print_json, print_table, readable_size, settings_from


@click.command()
@config_option
@json_option
@click.pass_context
def status(ctx: click.Context, config: Path | None, as_json: bool) -> None:
    """Show the cluster. Exit code 3 when a server is down or holds other shards than the map says, or a commit is overdue."""
    found = overview(settings_from(config))
    if as_json:
        print_json(report(found))
    else:
        show(found)
    if not found.healthy:
        ctx.exit(BEHIND)


def report(found: Overview) -> dict[str, Any]:
    """The overview as JSON values; sizes in bytes."""
    shardmap = found.map
    return {
        "cluster_id": str(shardmap.cluster_id),
        "map_version": shardmap.version,
        "shard_count": shardmap.shard_count,
        "shards": len(shardmap.placements),
        "tenant_type": shardmap.tenant_type,
        "pins": len(shardmap.pins),
        "healthy": found.healthy,
        "servers": [
            {
                "name": status.server.name,
                "dsn": status.server.dsn,
                "state": status.server.state.value,
                "weight": status.server.weight,
                "shards": status.shards,
                "size_bytes": status.size_bytes,
                "postgresql": status.release,
                "reachable": status.release is not None,
                "problems": list(status.problems),
            }
            for status in found.servers
        ],
        "in_doubt": [
            {
                "server": one.server,
                "transaction": str(one.txn),
                "part": one.part.gid.part,
                "age_s": one.part.age_s,
                "overdue": one.part.overdue,
                "locks": one.part.locks,
                "outcome": one.outcome,
            }
            for one in found.in_doubt
        ],
    }


def show(found: Overview) -> None:
    """The overview, for people."""
    shardmap = found.map
    click.echo(
        f"cluster {shardmap.cluster_id}: {len(shardmap.placements)} shards, {shardmap.tenant_type} tenants, "
        f"{len(shardmap.pins)} pins, map version {shardmap.version}"
    )
    rows = [
        (
            status.server.name,
            status.server.state.value,
            f"{status.server.weight:g}",
            status.shards,
            "-" if status.size_bytes is None else readable_size(status.size_bytes),
            status.release or "-",
            "; ".join(status.problems) or "ok",
        )
        for status in found.servers
    ]
    print_table(("SERVER", "STATE", "WEIGHT", "SHARDS", "SIZE", "POSTGRESQL", "HEALTH"), rows)
    if found.in_doubt:
        click.echo("transactions over several shards that wait for their second phase, and hold locks:")
        waiting = [
            (
                str(one.txn),
                one.server,
                f"{one.part.age_s:.0f} s{' (overdue)' if one.part.overdue else ''}",
                one.part.locks,
                one.outcome or "not decided",
            )
            for one in found.in_doubt
        ]
        print_table(("TRANSACTION", "SERVER", "AGE", "LOCKS", "DECIDED"), waiting)
    if any(one.part.overdue for one in found.in_doubt):
        click.echo("overdue ones are ended by any program that uses kit.transaction(), or by `shardkit doctor --fix`", err=True)
