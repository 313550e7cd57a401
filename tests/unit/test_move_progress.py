"""What a move shows while it runs: a bar with state, bytes, rate, time left and lag; or lines of JSON."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from shardkit.cli import progress
from shardkit.cli.progress import Display
from shardkit.core.placement import PlannedMove
from shardkit.move.options import Progress


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


@pytest.fixture
def shown():
    out = io.StringIO()
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[info]}")
    bar = Bar(*columns, console=Console(file=out, width=200, force_terminal=False), auto_refresh=False)

    def read():
        out.seek(0)
        out.truncate()
        bar.console.print(bar.get_renderable())
        return out.getvalue()

    return Display(bar, shards=3), read


def test_the_bar_has_state_bytes_rate_and_time_left(shown, clock):
    display, read = shown
    display.report(Progress(7, "copy", done=0, total=100_000_000))
    clock.now += 2
    display.report(Progress(7, "copy", done=20_000_000, total=100_000_000))
    said = read()
    assert "move 7 copy" in said
    assert "20.0 MB of 100 MB, 10.0 MB/s, 8 s left" in said


def test_the_bar_has_rows_lag_and_what_is_waited_for(shown):
    display, read = shown
    display.report(Progress(7, "verify", done=20_000, total=50_000))
    assert "20000 of 50000 rows" in read()
    display.report(Progress(7, "stream", lag_ms=1234.5))
    assert "1234 ms behind" in read()
    display.report(Progress(7, "copy", done=1, total=2, note="paused: standby s1 is 9.0 s behind (limit 5 s)"))
    assert "paused: standby s1 is 9.0 s behind" in read()


def test_of_many_moves_it_counts_those_that_have_ended(shown):
    display, read = shown
    display.done(PlannedMove(5, "pg1", "pg2", 1.0), object())
    display.done(PlannedMove(6, "pg1", "pg2", 1.0), RuntimeError("the target's disk is full"))
    assert display._bar.tasks[0].completed == 2
    assert read().startswith("all")


def test_lines_of_json_come_at_each_step_and_twice_a_second(capsys, clock):
    display = Display(None, shards=None)
    for done in range(10):
        clock.now += 0.1
        display.report(Progress(7, "copy", done=done, total=10))
    display.report(Progress(7, "verify", note="x"))
    display.done(PlannedMove(5, "pg1", "pg2", 1.0), RuntimeError("no"))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["step"], line["done"]) for line in lines[:-1]] == [("copy", 0), ("copy", 6), ("verify", 0)]
    assert set(lines[0]) == {"move", "step", "done", "total", "lag_ms", "note"}
    assert lines[-1] == {"shard": 5, "to": "pg2", "error": "no"}
