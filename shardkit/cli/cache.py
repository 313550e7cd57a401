"""``shardkit cache``: does it keep its promise, how does it do, and what still has to be told to it."""

from __future__ import annotations

import dataclasses
import signal
import threading
from pathlib import Path
from typing import Any

import click
from sqlalchemy import MetaData

from shardkit import ShardKit
from shardkit.cli.common import BEHIND, config_option, json_option, print_json, settings_from
from shardkit.errors import SettingsError
from shardkit.orm.cached import INFO
from shardkit.schema.blueprint import models_metadata


@click.group()
def cache() -> None:
    """The read-through cache."""


@cache.command()
@config_option
@json_option
def stats(config: Path | None, as_json: bool) -> None:
    """Redis' memory, eviction policy and hits, and what still has to be drained; exit code 3 with a warning."""
    with ShardKit(settings=settings_from(config)) as kit:
        found = {**kit.cache.servers(), "undrained": kit.cache.undrained()}
    if found["undrained"]:
        found["warnings"].append(
            f"{found['undrained']} transactions were committed while Redis was away and are not marked: shardkit cache drain"
        )
    if as_json:
        print_json(found)
    else:
        for server in found["servers"]:
            click.echo(
                f"{server['version']}  {server['memory']}  {server['policy']}  evicted {server['evicted']}  "
                f"GET found {server['found']} of {server['asked']}"
            )
    for warning in found["warnings"]:
        click.echo(f"warning: {warning}", err=True)
    if found["warnings"]:
        raise click.exceptions.Exit(BEHIND)


@cache.command()
@config_option
@json_option
@click.option("--models", required=True, help="package.module:Base, the models with their Cached declarations.")
@click.option("--sample", default=1000, show_default=True, help="Stored rows of each entity to compare.")
def verify(config: Path | None, as_json: bool, models: str, sample: int) -> None:
    """Compare stored rows with PostgreSQL's; exit code 1 if one of them is stale."""
    with ShardKit(settings=settings_from(config)) as kit:
        found = {cls.__name__: kit.cache.verify(cls, sample=sample) for cls in cached_classes(models_metadata(models))}
    if as_json:
        print_json({name: dataclasses.asdict(result) for name, result in found.items()})
    else:
        for name, result in found.items():
            click.echo(f"{name}  {result.checked} compared, {result.changing} changing, {len(result.stale)} stale")
    stale = [name for result in found.values() for name in result.stale]
    for name in stale:
        click.echo(f"stale: {name}", err=True)
    if stale:
        raise click.exceptions.Exit(1)


@cache.command()
@config_option
def drain(config: Path | None) -> None:
    """Mark what writers could not mark while Redis was away: outbox rows of every shard, also of programs that died."""
    with ShardKit(settings=settings_from(config)) as kit:
        found = kit.cache.drain()
    click.echo(f"{found} transactions marked")


@cache.command()
@config_option
@click.option("--models", required=True, help="package.module:Base, the models with their Cached declarations.")
@click.option("--once", is_flag=True, help="Pass what is in the log, and end.")
@click.option("--remove", is_flag=True, help="Drop the slots and publications: nothing is followed any more.")
def relay(config: Path | None, models: str, once: bool, remove: bool) -> None:
    """Tell the cache what psql, migrations and other programs commit, from each server's log; until it is ended.

    It needs wal_level = logical, and a replication slot on each server, which keeps the log while no relay runs: remove
    the slots when you do not want it any more.
    """
    from shardkit.relay import Relay  # the rest does without it

    stop = threading.Event()
    with ShardKit(settings=settings_from(config)) as kit:
        relay = Relay(kit, cached_classes(models_metadata(models)), warn=lambda text: click.echo(f"warning: {text}", err=True))
        try:
            if remove:
                relay.remove()
            elif once:
                relay.prepare()
                click.echo(f"{relay.run_once()} keys marked")
            else:
                for number in (signal.SIGTERM, signal.SIGINT):
                    signal.signal(number, lambda *_: stop.set())
                click.echo("following", err=True)
                relay.run(stop)
        finally:
            relay.close()


def cached_classes(metadata: MetaData) -> list[type[Any]]:
    """The entities of these tables that are cached."""
    found = [table.info[INFO].cls for table in metadata.sorted_tables if INFO in table.info]
    if not found:
        raise SettingsError("none of these models is cached: declare __cached__ = Cached(...) in one")
    return found
