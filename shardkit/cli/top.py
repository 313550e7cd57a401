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

HOTTEST, ENDED, BAR = 12, 5, 12


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
    stuck = [move for move in pulse.moves if move.stuck]
    parts += [Text(f"move {one.id} stopped: {one.problem or 'nobody works on it'}", style="bold red") for one in stuck]
    if pulse.migration is not None:
        run = pulse.migration
        parts.append(Text(f"migration {run.run} to {run.target}: {run.state}, {run.unfinished} shards not there", style="dim"))
    return Group(*parts)


def servers(found: tuple[ServerPulse, ...]) -> Table:
    """A line for each server."""
    standbys = ["STANDBYS"] if any(server.standbys for server in found) else []
    table = _table("SERVER", "SHARDS", "SIZE", "CONN", "READS/S", "WRITES/S", *standbys, "HEALTH")
    for server in found:
        reads, writes = (sum(getattr(s, what) or 0.0 for s in server.shards) for what in ("reads_per_s", "writes_per_s"))
        behind = ", ".join(f"{one.name} {one.sync} {readable_size(one.lag_bytes)}" for one in server.standbys)
        table.add_row(
            server.name,
            str(server.placed),
            "-" if server.size_bytes is None else readable_size(server.size_bytes),
            "-" if server.connections is None else f"{server.connections}/{server.max_connections}",
            f"{reads:,.0f}",
            f"{writes:,.0f}",
            *([behind or "-"] if standbys else []),
            Text(server.problem, style="bold red") if server.problem else Text(server.state, style="green"),
        )
    return table


def moves(found: tuple[MovePulse, ...]) -> Table:
    """A line for each move that has not ended, and for the last ones that have."""
    table = _table("MOVE", "SHARD", "FROM", "TO", "STEP", "PROGRESS", "LAG", "LEFT", "STALL")
    under = [move for move in found if not move.ended]
    for move in [*under, *[move for move in found if move.ended][:ENDED]]:
        table.add_row(
            str(move.id),
            f"{move.shard}{' (a tenant)' if move.tenant else ''}",
            move.source,
            move.target,
            Text(f"{move.step}, stopped", style="bold red") if move.stuck else move.step,
            ProgressBar(total=move.total, completed=move.done, width=BAR) if move.total else "",
            "-" if move.lag_ms is None else f"{move.lag_ms:.0f} ms",
            "-" if move.forecast_s is None else f"{move.forecast_s:.0f} s",
            "-" if move.stall_ms is None else f"{move.stall_ms:.0f} ms",
            style="dim" if move.ended else "",
        )
    return table


def _table(*names: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in names:
        table.add_column(name, no_wrap=True)
    return table


def hottest(found: tuple[ServerPulse, ...]) -> Table:
    """The shards that do the most."""
    table = _table("SHARD", "SERVER", "SIZE", "UNITS/S", "READS/S", "WRITES/S")
    everything = [(shard, server.name) for server in found for shard in server.shards]
    by_work = sorted(
        everything, key=lambda one: ((one[0].reads_per_s or 0) + (one[0].writes_per_s or 0), one[0].size_bytes), reverse=True
    )
    for shard, server in by_work[:HOTTEST]:
        measured = (shard.units_per_s, shard.reads_per_s, shard.writes_per_s)
        rates = ("-" if rate is None else f"{rate:,.0f}" for rate in measured)
        table.add_row(str(shard.shard), server, readable_size(shard.size_bytes), *rates)
    return table
