"""Figures with their quartiles and goals, drawn so that they can be read on a light and on a dark page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks.lines import Panel, panels
from benchmarks.report import Report, Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Mid greys and mid tones have a contrast of at least 3:1 on white and on #0d1117; the background stays transparent.
INK: Final = "#7d8590"
COLOURS: Final = {True: "#2f9e44", False: "#e8590c", None: "#4c8dd6"}
LINES: Final = ("#4c8dd6", "#e8590c", "#2f9e44", "#b0638f")
FAR: Final = 8
"""Lines whose highest point is so many times the lowest are drawn on a scale of powers: low ones would lie on the ground."""
WORDS: Final = {True: "", False: "  goal missed", None: ""}
_TITLES: Final = {
    "ratio": "ours / other (lower is better)",
    "faster": "times faster (higher is better)",
    "times": "times that of one (higher is better)",
}


def plot(report: Report, folder: Path, *, kinds: Sequence[str] = ("svg", "png")) -> list[Path]:
    """Draw *report* in *folder*, as a file of each of *kinds*; returns the files written."""
    import matplotlib as mpl

    folder.mkdir(parents=True, exist_ok=True)
    drawn = panels(report)
    groups = _by_unit({key: result for key, result in report.results.items() if not drawn or result.goal is not None})
    if not groups and not drawn:
        return []
    files = [folder / f"{report.benchmark}.{kind}" for kind in kinds]
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": report.benchmark, "text.parse_math": False}):
        figure = _figure(groups, drawn)
        figure.suptitle(f"{report.question}\n{report.commit}, {report.when}", color=INK, fontsize=10)
        for file in files:
            figure.savefig(file, transparent=True, dpi=160, metadata={"Date": None} if file.suffix == ".svg" else None)
    return files


def _figure(groups: Mapping[str, Mapping[str, Result]], drawn: Sequence[Panel]) -> Figure:
    """Bars of each unit below one another, then lines two by two."""
    from matplotlib.figure import Figure

    heights = [0.9 + 0.36 * len(group) for group in groups.values()]
    heights += [2.6] * -(-len(drawn) // 2)
    figure = Figure(figsize=(9, 0.5 + sum(heights)), layout="constrained")
    grid = figure.add_gridspec(len(heights), 2, height_ratios=heights)
    for row, (unit, group) in enumerate(groups.items()):
        _bars(figure.add_subplot(grid[row, :]), unit, group)
    for place, panel in enumerate(drawn):
        _lines(figure.add_subplot(grid[len(groups) + place // 2, place % 2]), panel)
    return figure


def _by_unit(results: Mapping[str, Result]) -> dict[str, dict[str, Result]]:
    groups: dict[str, dict[str, Result]] = {}
    for key, result in results.items():
        groups.setdefault(result.unit, {})[key] = result
    return groups


def _bars(axes: Axes, unit: str, group: Mapping[str, Result]) -> None:
    for place, result in enumerate(group.values()):
        whiskers = [[result.median - result.p25], [result.p75 - result.median]]
        axes.barh(place, result.median, height=0.5, color=COLOURS[result.met], alpha=0.6, xerr=whiskers, ecolor=INK, capsize=3)
        if result.goal is not None:
            axes.plot([result.goal] * 2, [place - 0.42, place + 0.42], color=INK, linewidth=2, linestyle=(0, (2, 1)))
        # At the right edge, where neither a whisker nor the line at 1 runs through it.
        words, across = f"{result.median:.3g}{WORDS[result.met]}", axes.get_yaxis_transform()
        axes.text(1.0, place, words, transform=across, ha="right", va="center", color=INK, fontsize=8)
    axes.set_yticks(range(len(group)), list(group))
    axes.invert_yaxis()
    axes.margins(x=0.3 if any(result.met is False for result in group.values()) else 0.15)
    axes.set_xlim(left=0)
    if unit == "ratio":
        axes.axvline(1, color=INK, linewidth=0.8)
    _dress(axes, _TITLES.get(unit, unit))


def _lines(axes: Axes, panel: Panel) -> None:
    from matplotlib.ticker import LogLocator

    for (label, points), colour in zip(panel.lines.items(), LINES, strict=False):
        across = sorted(points)
        low, middle, high = zip(*(points[x] for x in across), strict=True)
        axes.plot(across, middle, color=colour, marker="o", markersize=4, label=label)
        axes.fill_between(across, low, high, color=colour, alpha=0.2, linewidth=0)
    values = sorted({x for points in panel.lines.values() for x in points})
    if values[-1] / values[0] > FAR:
        axes.set_xscale("log", base=2)
    axes.set_xticks(values, [f"{value:,.0f}" for value in values])
    medians = [middle for points in panel.lines.values() for _, middle, _ in points.values()]
    if min(medians) > 0 and max(medians) / min(medians) > FAR:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    else:
        axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.minorticks_off()
    axes.set_xlabel(panel.across, color=INK, fontsize=8)
    if len(panel.lines) > 1:
        axes.legend(frameon=False, labelcolor=INK, fontsize=8)
    _dress(axes, panel.title)


def _dress(axes: Axes, title: str) -> None:
    axes.set_title(title, color=INK, fontsize=9, loc="left")
    axes.tick_params(colors=INK, labelsize=8)
    for spine in axes.spines.values():
        spine.set_visible(False)
