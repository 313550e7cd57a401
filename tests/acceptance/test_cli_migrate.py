"""What ``shardkit migrate`` shows on a terminal while it runs: how far it is, how fast, how long still, and who failed."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from shardkit.cli.migrate import bar
from tests.acceptance.program import on_a_terminal
from tests.integration.fleetlab import FleetLab

SHARDS = 16
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
FRAME = re.compile(
    r"migrating \S+ +(?P<done>\d+)/(?P<total>\d+) (?:(?P<rate>[\d.]+) shards/s)? *(?P<left>\d+:\d\d:\d\d)?"
    r".*?(?P<failed>\d+ failed)?\s*$"
)


def frames(shown: str) -> list[re.Match[str]]:
    """Every state of the bar that was drawn."""
    lines = re.split(r"[\r\n]+", CONTROL.sub("", shown))
    return [found for line in lines if (found := FRAME.match(line))]


def tells(found: list[re.Match[str]]) -> bool:
    """Whether somebody who watched could have known, before the end, how fast it goes and how long it will take."""
    return any(f["rate"] and f["left"] and 0 < int(f["done"]) < int(f["total"]) for f in found)


@pytest.fixture
def lab(shardkit_databases, tmp_path):
    return FleetLab.with_orders(shardkit_databases(2), tmp_path / "tree", shards=SHARDS)


def shown_by(lab, *arguments: str) -> tuple[int, str]:
    return on_a_terminal(lab.command(*arguments), env=lab.environment)


def test_bar_says_how_far_how_fast_how_long_still_and_who_failed(lab):
    with lab.shard(9) as connection:
        connection.execute("INSERT INTO orders VALUES (1, 'same'), (2, 'same')")
    lab.revise("b", "op.execute('SELECT pg_sleep(0.2)')\nop.create_unique_constraint('one', 'orders', ['note'])")
    code, shown = shown_by(lab, "upgrade", "--yes", "--parallel", "1", "--batch", "1")
    found = frames(shown)
    assert code == 1, shown
    assert tells(found), shown
    assert {f["total"] for f in found} == {str(SHARDS)}
    counts = [int(f["done"]) for f in found]
    assert counts == sorted(counts)
    assert (counts[-1], found[-1]["failed"]) == (SHARDS, "1 failed")


def test_nothing_is_drawn_where_there_is_no_terminal(lab):
    lab.revise("b", "op.execute('SELECT 1')")
    assert not frames(lab.run("upgrade", "--yes", "--json").stderr)


def test_rate_and_time_left_are_right():
    now, drawn = [100.0], io.StringIO()
    with bar(Console(file=drawn, force_terminal=True, width=120), clock=lambda: now[0]) as heard:
        for second in range(1, 6):
            now[0] = 100.0 + second
            heard(4 * second, 80, 0)
    last = frames(drawn.getvalue())[-1]
    assert (last["done"], last["total"], last["rate"], last["left"]) == ("20", "80", "4.0", "0:00:15")


@pytest.mark.parametrize("line", ["migrating ━━━━ 5/16 -:--:-- ", "migrating ━━━━ 16/16 9.1 shards/s 0:00:00 ", ""])
def test_planted_bar_that_says_too_little_is_seen(line):
    assert not tells(frames(line))
    assert tells(frames("migrating ━━━━━╺━━━━  5/16 3.1 shards/s 0:00:04 1 failed"))
