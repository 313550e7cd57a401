"""``shardkit top``: the cluster in the terminal, as it is, again and again."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import click
from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from shardkit.catalog.pulse import PulseWatch
from shardkit.cli.common import config_option, json_option, print_json, readable_size, settings_from
from shardkit.core.pulse import MovePulse, Pulse, ServerPulse, ShardPulse
from shardkit.errors import CatalogUnavailableError

HOTTEST, ENDED, BAR = 12, 5, 12
HEAT: Final[dict[str, Callable[[ShardPulse], float]]] = {
    "work": lambda shard: (shard.reads_per_s or 0) + (shard.writes_per_s or 0),
    "units": lambda shard: shard.units_per_s or 0,
    "bytes": lambda shard: shard.size_bytes,
    "p99": lambda shard: shard.p99_ms or 0,
}


@click.command()
@click.option("--every", type=click.FloatRange(0.2, 60), default=1.0, show_default=True, help="Seconds between two looks.")
@click.option("--once", is_flag=True, help="Look twice, print once, and end.")
@click.option(
    "--by",
    type=click.Choice(list(HEAT)),
    default="work",
    show_default=True,
    help="Which shards are shown first: reads and writes, units of work, bytes, or the p99 of statements.",
)
@json_option
@config_option
def top(every: float, once: bool, by: str, as_json: bool, config: Path | None) -> None:
    """Show servers, moves and the hottest shards as they are, until Ctrl-C. With --json all of it, once."""
    console = Console()
    with PulseWatch(settings_from(config)) as watch:
        if once or as_json:
            watch.take()
            time.sleep(every)  # rates need two looks
            pulse = watch.take()
            if as_json:
                print_json(pulse.as_json())
            else:
                console.print(picture(pulse, by=by))
            return
        try:
            with Live(console=console, screen=console.is_terminal, auto_refresh=False) as live:
                while True:
                    live.update(_look(watch, by=by), refresh=True)
                    time.sleep(every)
        except KeyboardInterrupt:
            return


def _look(watch: PulseWatch, *, by: str) -> RenderableType:
    try:
        return picture(watch.take(), by=by)
    except CatalogUnavailableError as exc:
        return Text(str(exc.args[0]), style="bold red")


def picture(pulse: Pulse, *, by: str) -> RenderableType:
    """A pulse, for a terminal; the shards that are hottest by one of HEAT."""
    head = Text.assemble(
        ("shardkit ", "bold"),
        f"{pulse.cluster[:8]}  map {pulse.version}  {pulse.shard_count} shards  "
        f"{sum(not move.ended for move in pulse.moves)} moves  {time.strftime('%H:%M:%S', time.localtime(pulse.at_s))}",
    )
    parts: list[RenderableType] = [head, servers(pulse.servers)]
    if pulse.moves:
        parts.append(moves(pulse.moves))
    parts.append(hottest(pulse.servers, by=by))
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


def hottest(found: tuple[ServerPulse, ...], *, by: str) -> Table:
    """The shards that are hottest by one of HEAT."""
    table = _table("SHARD", "SERVER", "SIZE", "UNITS/S", "READS/S", "WRITES/S", "P99")
    everything = [(shard, server.name) for server in found for shard in server.shards]
    everything.sort(key=lambda one: (HEAT[by](one[0]), one[0].size_bytes), reverse=True)
    for shard, server in everything[:HOTTEST]:
        measured = (shard.units_per_s, shard.reads_per_s, shard.writes_per_s)
        rates = ("-" if rate is None else f"{rate:,.0f}" for rate in measured)
        p99 = "-" if shard.p99_ms is None else f"{shard.p99_ms:,.1f} ms"
        table.add_row(str(shard.shard), server, readable_size(shard.size_bytes), *rates, p99)
    return table
