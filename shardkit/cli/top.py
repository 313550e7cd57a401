"""``shardkit top``: the cluster in the terminal, as it is, again and again."""

from __future__ import annotations

import time
from pathlib import Path

import click
from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from shardkit.catalog.pulse import PulseWatch
from shardkit.cli.common import config_option, readable_size, settings_from
from shardkit.core.pulse import MovePulse, Pulse, ServerPulse
from shardkit.errors import CatalogUnavailableError

HOTTEST = 12
BAR = 24


@click.command()
@click.option("--every", type=click.FloatRange(0.2, 60), default=1.0, show_default=True, help="Seconds between two looks.")
@click.option("--once", is_flag=True, help="Look twice, print once, and end.")
@config_option
def top(every: float, once: bool, config: Path | None) -> None:  # noqa: FBT001  click's signature
    """Show servers, moves and the busiest shards as they are, until Ctrl-C."""
    console = Console()
    with PulseWatch(settings_from(config)) as watch:
        if once:
            watch.take()
            time.sleep(every)  # rates need two looks
            console.print(picture(watch.take()))
            return
        try:
            with Live(console=console, screen=console.is_terminal, auto_refresh=False) as live:
                while True:
                    live.update(_look(watch), refresh=True)
                    time.sleep(every)
        except KeyboardInterrupt:
            return


def _look(watch: PulseWatch) -> RenderableType:
    try:
        return picture(watch.take())
    except CatalogUnavailableError as exc:
        return Text(str(exc.args[0]), style="bold red")


def picture(pulse: Pulse) -> RenderableType:
    """A pulse, for a terminal."""
    head = Text.assemble(
        ("shardkit ", "bold"),
        f"{pulse.cluster[:8]}  map {pulse.version}  {pulse.shard_count} shards  "
        f"{sum(not move.ended for move in pulse.moves)} moves  {time.strftime('%H:%M:%S', time.localtime(pulse.at_s))}",
    )
    parts: list[RenderableType] = [head, servers(pulse.servers)]
    if pulse.moves:
        parts.append(moves(pulse.moves))
    parts.append(hottest(pulse.servers))
    if pulse.migration is not None:
        run = pulse.migration
        parts.append(Text(f"migration {run.run} to {run.target}: {run.state}, {run.unfinished} shards not there", style="dim"))
    return Group(*parts)


def servers(found: tuple[ServerPulse, ...]) -> Table:
    """A line for each server."""
    table = Table(
        "SERVER", "STATE", "SHARDS", "", "SIZE", "CONNECTIONS", "READS/S", "WRITES/S", "STANDBYS", "HEALTH", box=box.SIMPLE
    )
    most = max((server.placed for server in found), default=0) or 1
    for server in found:
        reads, writes = (sum(getattr(s, what) or 0.0 for s in server.shards) for what in ("reads_per_s", "writes_per_s"))
        behind = ", ".join(f"{one.name} {one.sync} {readable_size(one.lag_bytes)}" for one in server.standbys)
        health = Text(server.problem, style="bold red") if server.problem else Text("ok", style="green")
        connections = "-" if server.connections is None else f"{server.connections}/{server.max_connections}"
        table.add_row(
            server.name,
            server.state,
            str(server.placed),
            ProgressBar(total=most, completed=server.placed, width=BAR),
            "-" if server.size_bytes is None else readable_size(server.size_bytes),
            connections,
            f"{reads:,.0f}",
            f"{writes:,.0f}",
            behind or "-",
            health,
        )
    return table


def moves(found: tuple[MovePulse, ...]) -> Table:
    """A line for each move."""
    table = Table("MOVE", "SHARD", "FROM", "TO", "STEP", "PROGRESS", "LAG", "LEFT", "STALL", "", box=box.SIMPLE)
    for move in found:
        note = Text("STOPPED: " + (move.problem or "nobody works on it"), style="bold red") if move.stuck else Text(move.note)
        table.add_row(
            str(move.id),
            f"{move.shard}{' (a tenant)' if move.tenant else ''}",
            move.source,
            move.target,
            move.step,
            ProgressBar(total=move.total, completed=move.done, width=BAR) if move.total else "",
            "-" if move.lag_ms is None else f"{move.lag_ms:.0f} ms",
            "-" if move.forecast_s is None else f"{move.forecast_s:.0f} s",
            "-" if move.stall_ms is None else f"{move.stall_ms:.0f} ms",
            note,
            style="dim" if move.ended else "",
        )
    return table


def hottest(found: tuple[ServerPulse, ...]) -> Table:
    """The shards that do the most."""
    table = Table("SHARD", "SERVER", "SIZE", "READS/S", "WRITES/S", box=box.SIMPLE)
    everything = [(shard, server.name) for server in found for shard in server.shards]
    by_work = sorted(
        everything, key=lambda one: ((one[0].reads_per_s or 0) + (one[0].writes_per_s or 0), one[0].size_bytes), reverse=True
    )
    for shard, server in by_work[:HOTTEST]:
        rates = ("-" if rate is None else f"{rate:,.0f}" for rate in (shard.reads_per_s, shard.writes_per_s))
        table.add_row(str(shard.shard), server, readable_size(shard.size_bytes), *rates)
    return table
