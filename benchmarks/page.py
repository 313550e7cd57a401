"""The page of results in the documentation: made from reports alone, misses and noise first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from benchmarks import NAMES, plots, present, report, tables
from benchmarks.report import ROOT, Report, ReportError, Result

RESULTS: Final = Path(__file__).parent / "results"
PAGE: Final = ROOT / "docs" / "reference" / "benchmarks.md"
PLOTS: Final = PAGE.with_suffix("")
LARGEST: Final = 100_000
"""Bytes of one report that is kept with the source."""

HEAD: Final = """# Benchmarks

Made by `python -m benchmarks page` from the reports in `benchmarks/results/`. Each benchmark starts servers of its own on
loopback, compares on the same work in the same run, in blocks whose order is shuffled anew in every round, and gives medians.
What a figure means, and what it cannot tell, is in `benchmarks/README.md`.

```sh
pip install -e ".[local,bench]"
mkdir -p reports
for name in {names}; do python -m benchmarks $name --json reports/$name.json; done
python -m benchmarks page --from reports      # this page, its pictures and benchmarks/results
python -m benchmarks compare benchmarks/results/routing.json reports/routing.json    # what changed beyond noise
```

**ratio** is ours / the other (lower is better), **faster** the other / ours, **times** a share of what one shard or one
server does (higher is better). *p25 to p75*: half of the rounds lie there. *95 %*: the bootstrap interval of the median.
**noisy**: p75/p25 > 1.3, the median says little. A goal is met by the median, and where a worst is named by every round.
"""


def write(given: Path | None) -> list[Path]:
    """Write the page and its pictures from :data:`RESULTS`, after taking over the reports of *given*; gives the files.

    Raises ReportError where a file is no report, or too large to be kept.
    """
    written = list(_taken_over(given)) if given else []
    reports = kept()
    PLOTS.mkdir(exist_ok=True)
    for found in reports:
        written += plots.plot(found, PLOTS, kinds=["svg"])
    PAGE.write_text(text(reports), "utf-8")
    return [*written, PAGE]


def _taken_over(given: Path) -> Iterable[Path]:
    """The newest report of each benchmark in *given*, without its single operations."""
    newest: dict[str, Report] = {}
    for file in sorted(given.glob("*.json")):
        found = report.read(file)
        if found.benchmark in NAMES and found.when >= newest.get(found.benchmark, found).when:
            newest[found.benchmark] = found
    if not newest:
        raise ReportError(f"there is no report in {given}")
    RESULTS.mkdir(exist_ok=True)
    for name, found in newest.items():
        target = RESULTS / f"{name}.json"
        report.write(report.small(found), target)
        if target.stat().st_size > LARGEST:
            raise ReportError(f"{target.name} has {target.stat().st_size} bytes, more than the {LARGEST} that are kept")
        yield target


def kept() -> list[Report]:
    """The reports kept with the source, in the order of the list."""
    return [report.read(file) for name in NAMES if (file := RESULTS / f"{name}.json").is_file()]


def text(reports: Sequence[Report]) -> str:
    """The page of *reports*."""
    missing = [name for name in present() if name not in {found.benchmark for found in reports}]
    parts = [HEAD.format(names=" ".join(present())), _summary(reports, missing), *map(_section, reports)]
    return "\n".join(parts)


def _summary(reports: Sequence[Report], missing: Sequence[str]) -> str:
    judged = [(found, key, result) for found in reports for key, result in found.results.items() if result.met is not None]
    missed = [(found, key, result) for found, key, result in judged if not result.met]
    noisy = [f"`{key}`" for _, key, result in judged if result.noisy]
    lines = [f"## In short\n\n{len(judged) - len(missed)} of {len(judged)} goals are met."]
    if missed:
        lines.append("Missed:\n\n| benchmark | figure | median | p25 to p75 | goal |\n|---|---|---:|---:|---|")
        lines[-1] += "".join(
            f"\n| [{found.benchmark}](#{found.benchmark}) | `{key}` | {tables.number(result.median)} | {_quartiles(result)} | "
            f"{tables.goal(result)} |"
            for found, key, result in missed
        )
    if noisy:
        lines.append(f"Noisy, to be measured again before they are believed: {', '.join(noisy)}.")
    if quick := [f"`{found.benchmark}`" for found in reports if found.params.get("quick")]:
        lines.append(f"From few rounds (`--quick`): {', '.join(quick)}.")
    if dirty := [f"`{found.benchmark}`" for found in reports if found.commit.endswith("-dirty")]:
        lines.append(f"Measured on files that were changed after their commit: {', '.join(dirty)}.")
    if len(commits := sorted({found.commit for found in reports})) > 1:
        lines.append(f"The reports are not all of one commit: {', '.join(commits)}.")
    if missing:
        lines.append(f"Not measured: {', '.join(f'`{name}`' for name in missing)}.")
    return "\n\n".join(lines) + "\n"


def _section(found: Report) -> str:
    goals = {key: result for key, result in found.results.items() if result.met is not None}
    others = {key: result for key, result in found.results.items() if result.met is None}
    quick = " --quick" if found.params.get("quick") else ""
    parts = [
        f"## {found.benchmark}",
        f"**{found.question}** `python -m benchmarks {found.benchmark}{quick}`",
        f"Commit {found.commit}, {found.when}; {_conditions(found)}.",
    ]
    if goals:
        parts.append(_table(goals, judged=True))
    if others:
        parts.append(("Without a goal:\n\n" if goals else "") + _table(others, judged=False))
    if found.skipped:
        parts.append("Skipped:\n\n" + "\n".join(f"- `{name}`: {why}" for name, why in found.skipped.items()))
    if found.results:
        parts.append(f"![The figures of {found.benchmark} as bars and lines](benchmarks/{found.benchmark}.svg)")
    return "\n\n".join(parts) + "\n"


def _conditions(found: Report) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in found.versions.items())
    return f"{found.machine.cores} cores, load when it began {tables.load(found)}; up to {found.rounds} rounds; {versions}"


def _table(results: dict[str, Result], *, judged: bool) -> str:
    heads, rules = "| figure | unit | median | p25 to p75 | 95 % | worst seen | n |", "|---|---|---:|---:|---:|---:|---:|"
    lines = [heads + (" goal | |" if judged else " |"), rules + ("---|---|" if judged else "---|")]
    for key, result in results.items():
        noisy = "noisy" if result.noisy else ""
        cells = [
            f"`{key}`", result.unit, tables.number(result.median), _quartiles(result),
            " to ".join(map(tables.number, result.ci)), tables.number(result.max) if result.better == "lower" else "",
            str(result.n),
        ]  # fmt: skip
        if judged:
            cells += [tables.goal(result), " ".join(filter(None, ["met" if result.met else "**missed**", noisy]))]
        else:
            cells.append(noisy)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _quartiles(result: Result) -> str:
    return f"{tables.number(result.p25)} to {tables.number(result.p75)}"
