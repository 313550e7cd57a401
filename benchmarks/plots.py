"""Bars of the ratios with their quartiles and goals, drawn so that they can be read on a light and on a dark page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks.report import Report, Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Mid greys and mid tones have a contrast of at least 3:1 on white and on #0d1117; the background stays transparent.
INK: Final = "#7d8590"
COLOURS: Final = {True: "#2f9e44", False: "#e8590c", None: "#4c8dd6"}
WORDS: Final = {True: "", False: "  goal missed", None: ""}
_TITLES: Final = {"ratio": "ours / other (lower is better)", "faster": "times faster (higher is better)"}


def plot(report: Report, folder: Path) -> list[Path]:
    """Draw the figures of *report*, one panel per unit, as SVG and PNG in *folder*; returns the files written."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    groups = _by_unit(report)
    if not groups:
        return []
    bars = [len(group) for group in groups.values()]
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": report.benchmark, "text.parse_math": False}):
        figure = Figure(figsize=(9, 1.3 * len(groups) + 0.36 * sum(bars)), layout="constrained")
        panels = figure.subplots(len(groups), 1, squeeze=False, height_ratios=[count + 1 for count in bars])
        for axes, (unit, group) in zip(panels[:, 0], groups.items(), strict=True):
            _panel(axes, unit, group)
        figure.suptitle(f"{report.question}\n{report.commit}, {report.when}", color=INK, fontsize=10)
        files = [folder / f"{report.benchmark}.{kind}" for kind in ("svg", "png")]
        for file in files:
            figure.savefig(file, transparent=True, dpi=160, metadata={"Date": None} if file.suffix == ".svg" else None)
    return files


def _by_unit(report: Report) -> dict[str, dict[str, Result]]:
    groups: dict[str, dict[str, Result]] = {}
    for key, result in report.results.items():
        groups.setdefault(result.unit, {})[key] = result
    return groups


def _panel(axes: Axes, unit: str, group: dict[str, Result]) -> None:
    for place, result in enumerate(group.values()):
        whiskers = [[result.median - result.p25], [result.p75 - result.median]]
        axes.barh(place, result.median, height=0.5, color=COLOURS[result.met], alpha=0.6, xerr=whiskers, ecolor=INK, capsize=3)
        if result.goal is not None:
            axes.plot([result.goal] * 2, [place - 0.42, place + 0.42], color=INK, linewidth=2, linestyle=(0, (2, 1)))
        axes.annotate(
            f"{result.median:.3g}{WORDS[result.met]}", (max(result.p75, result.goal or 0), place), xytext=(6, 0),
            textcoords="offset points", va="center", color=INK, fontsize=8,
        )  # fmt: skip
    axes.set_yticks(range(len(group)), list(group))
    axes.invert_yaxis()
    axes.margins(x=0.18)
    axes.set_xlim(left=0)
    if unit == "ratio":
        axes.axvline(1, color=INK, linewidth=0.8)
    axes.set_title(_TITLES.get(unit, unit), color=INK, fontsize=9, loc="left")
    axes.tick_params(colors=INK, labelsize=8)
    for spine in axes.spines.values():
        spine.set_visible(False)
