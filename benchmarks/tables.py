"""The same figures for people: one line each, the goal beside it, and a word where noise makes them doubtful."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from benchmarks.compare import Change
from benchmarks.report import Report, Result

_WORDS = {"better": "green", "worse": "red", "missing": "red", "skipped": "yellow", "new": "cyan", "same": "dim"}


def results(report: Report) -> Table:
    """Every figure of *report*, then what was skipped."""
    table = Table(title=report.question, title_justify="left", caption=_caption(report), caption_justify="left")
    for heading in ("figure", "median", "p25 to p75", "95 % interval", "max", "n", "goal", ""):
        table.add_column(heading, justify="left" if heading in ("figure", "") else "right", overflow="fold")
    for key, result in report.results.items():
        quartiles, interval = f"{number(result.p25)} to {number(result.p75)}", " to ".join(map(number, result.ci))
        table.add_row(
            f"{key} [{unit(result)}]".replace("[", r"\["), number(result.median), quartiles, interval,
            number(result.max), str(result.n), goal(result), _verdict(result),
        )  # fmt: skip
    for name, why in report.skipped.items():
        table.add_row(name, *[""] * 6, Text(f"skipped: {why}", style="yellow"))
    return table


def changes(found: Sequence[Change]) -> Table:
    """What became of each figure between two reports."""
    table = Table()
    for heading in ("figure", "before", "after", "change", ""):
        table.add_column(heading, justify="left" if heading in ("figure", "") else "right", overflow="fold")
    for change in found:
        before, after = change.before, change.after
        step = f"{after.median / before.median - 1:+.1%}" if before and after and before.median else ""
        shown = [f"{number(side.median)} ± {number((side.ci[1] - side.ci[0]) / 2)}" if side else ""
                 for side in (before, after)]  # fmt: skip
        table.add_row(change.key, *shown, step, Text(change.verdict, style=_WORDS[change.verdict]))
    return table


def _caption(report: Report) -> str:
    versions = " · ".join(f"{name} {version}" for name, version in report.versions.items())
    machine = f"{report.machine.cores} cores, load {load(report)}"
    return f"{report.benchmark} · {report.commit} · {report.when} · {machine}\n{versions}"


def load(report: Report) -> str:
    """The machine's load when the run began, and when it ended: then its own is in it."""
    end = report.machine.load_end
    return f"{report.machine.load:g}" if end is None else f"{report.machine.load:g}, at the end {end:g}"


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def unit(result: Result) -> str:
    return {"ratio": "ours / other", "faster": "times faster", "times": "times that of one"}.get(result.unit, result.unit)


def goal(result: Result) -> str:
    sign = "≤" if result.better == "lower" else "≥"
    goals = [f"{sign} {number(result.goal)}"] if result.goal is not None else []
    if result.goal_max is not None and result.goal_max != result.goal:
        goals.append(f"worst {sign} {number(result.goal_max)}")
    return ", ".join(goals)


def _verdict(result: Result) -> Text:
    words = {True: ("met", "green"), False: ("MISSED", "bold red"), None: ("", "")}[result.met]
    verdict = Text(words[0], style=words[1])
    if result.noisy:
        verdict.append("  noisy" if words[0] else "noisy", style="yellow")
    return verdict
