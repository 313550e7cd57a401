"""Which figures of a benchmark belong on one line: those that differ only in a number that their names carry."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from benchmarks.report import Report


@dataclass(frozen=True, slots=True)
class Panel:
    """One drawing: for each line its points, x → (p25, median, p75)."""

    title: str
    across: str
    lines: dict[str, dict[float, tuple[float, float, float]]]


PANELS: Final = {
    "shards": (
        ("operations a second, photo service", "shards", r"ops_(?P<x>\d+)_on_(?P<line>\d+)", "servers: {}"),
        ("p99, ms", "shards", r"p99_ms_(?P<x>\d+)_on_(?P<line>\d+)", "servers: {}"),
        ("memory of a backend that has read every shard, MB", "shards", r"(?P<line>touched)_mb_(?P<x>\d+)_on_1", "{}"),
        ("operations a second, bank", "shards", r"bank_ops_(?P<x>\d+)_on_(?P<line>\d+)", "servers: {}"),
        (
            "operations a second, each server of fixed capacity",
            "servers",
            r"fixed_ops_(?P<line>\d+)_on_(?P<x>\d+)",
            "shards: {}",
        ),
    ),
    "year": (
        (
            "fullest server over its fair share, before and after a rebalance",
            "servers",
            r"(?P<line>drifted|fullest)_over_share_(?P<x>\d+)",
            "{}",
        ),
        ("hot servers, share", "servers", r"(?P<line>hot)_servers_(?P<x>\d+)", "{}"),
        ("bytes moved in a year, share of all", "servers", r"(?P<line>moved)_share_(?P<x>\d+)", "{}"),
        ("minutes to empty the fullest server", "servers", r"(?P<line>drain)_minutes_(?P<x>\d+)", "{}"),
    ),
}


WORDS: Final = {"drifted": "before", "fullest": "after"}


def panels(report: Report) -> list[Panel]:
    """The drawings of *report*: none for a benchmark whose figures stand each for itself."""
    found = []
    for title, across, pattern, label in PANELS.get(report.benchmark, ()):
        lines: dict[str, dict[float, tuple[float, float, float]]] = {}
        for key, result in report.results.items():
            if match := re.fullmatch(pattern, key):
                line = lines.setdefault(label.format(WORDS.get(match["line"], match["line"])), {})
                line[float(match["x"])] = result.p25, result.median, result.p75
        if lines:
            found.append(Panel(title, across, lines))
    return found
