"""Shows how moves go: a bar for people, or one line of JSON for each piece of news."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from shardkit.catalog.journal import Move
from shardkit.cli.common import readable_size
from shardkit.core.placement import PlannedMove
from shardkit.move import options

EVERY_S = 0.5


class Display:
    """Hears of moves, and shows it on stderr; JSON goes to stdout."""

    def __init__(self, bar: Progress | None, *, shards: int | None) -> None:
        self._bar, self._tasks, self._said = bar, dict[int, TaskID](), dict[int, tuple[str, float]]()
        self._all = bar.add_task("all", total=shards, info="") if bar is not None and shards else None
        self._began: dict[tuple[int, str], float] = {}

    def report(self, news: options.Progress) -> None:
        """One move's news."""
        if self._bar is None:
            self._say(news)
            return
        task = self._tasks.get(news.move_id)
        if task is None:
            task = self._tasks[news.move_id] = self._bar.add_task(f"move {news.move_id}", total=None, info="")
        self._bar.update(
            task,
            description=f"move {news.move_id} {news.step}",
            completed=news.done,
            total=news.total or None,
            info=self._info(news),
        )

    def done(self, planned: PlannedMove | Move, outcome: Any) -> None:
        """One of many moves ended."""
        failed = isinstance(outcome, Exception)
        if self._bar is None:
            click.echo(json.dumps({"shard": planned.shard, "to": planned.target, "error": str(outcome) if failed else None}))
            return
        if self._all is not None:
            self._bar.advance(self._all)
        if failed:
            self._bar.console.print(f"shard {planned.shard} to {planned.target}: {outcome}", highlight=False, markup=False)

    def _info(self, news: options.Progress) -> str:
        began = self._began.setdefault((news.move_id, news.step), time.monotonic())
        parts = [news.note] if news.note else []
        if news.step == "copy" and news.total:
            rate = news.done / max(time.monotonic() - began, 0.001)
            left_s = max(0.0, news.total - news.done) / rate if rate else 0.0
            parts += [
                f"{readable_size(news.done)} of {readable_size(news.total)}",
                f"{readable_size(rate)}/s",
                f"{left_s:.0f} s left",
            ]
        elif news.total:
            parts.append(f"{news.done} of {news.total} rows")
        if news.lag_ms is not None:
            parts.append(f"{news.lag_ms:.0f} ms behind")
        return ", ".join(parts)

    def _say(self, news: options.Progress) -> None:
        step, at = self._said.get(news.move_id, ("", 0.0))
        if news.step != step or time.monotonic() - at > EVERY_S:
            self._said[news.move_id] = news.step, time.monotonic()
            known = {
                "move": news.move_id,
                "step": news.step,
                "done": news.done,
                "total": news.total,
                "lag_ms": news.lag_ms,
                "note": news.note,
            }
            click.echo(json.dumps(known))


@contextmanager
def shown(*, as_json: bool, shards: int | None = None) -> Iterator[Display]:
    """Show moves while the block lasts."""
    if as_json:
        yield Display(None, shards=shards)
        return
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[info]}"), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        yield Display(bar, shards=shards)
