"""``shardkit demo``: the tour."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from shardkit import demo as tour

KEPT = Path(".shardkit/demo")


@click.command()
@click.option("--servers", type=click.IntRange(1, 16), default=3, show_default=True, help="PostgreSQL servers.")
@click.option("--shards", type=int, default=256, show_default=True, help="Logical shards: a power of two up to 8192.")
@click.option("--keep", is_flag=True, help=f"Leave the cluster up, in {KEPT}.")
def demo(servers: int, shards: int, keep: bool) -> None:
    """See it work: real servers on this machine, 28,000 airports of 234 countries, a tenant each.

    Ends by itself and leaves nothing behind, unless --keep.
    """
    tour.run(Console(), servers=servers, shards=shards, keep=KEPT if keep else None)
