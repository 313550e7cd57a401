"""Command line of the benchmarks: list them, run one, compare two reports, make the page of results."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from benchmarks import NAMES, compare, find, page, plots, present, report, tables
from benchmarks.harness import Bench

DONE, FAILED, USAGE, WORSE = 0, 1, 2, 3


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    given = _parser().parse_args(arguments)
    if given.name == "compare":
        return _compare(given.files)
    if given.files:
        return _usage("only compare takes files")
    if given.name == "page":
        return _page(given.source)
    if given.source:
        return _usage("only page takes --from")
    if given.name is None:
        return _list()
    if given.name not in present():
        known = "is not in this checkout" if given.name in NAMES else "is not known"
        return _usage(f"benchmark {given.name!r} {known}; there are: {', '.join(present())}")
    return _run(given.name, quick=given.quick, json=given.json, plot=given.plot)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Without a name: list the benchmarks and the question each one answers.",
        epilog="Exit codes: 0 done (goals may be missed: read the table), 1 failed, 2 usage, 3 compare found something worse.",
    )
    parser.add_argument("name", nargs="?", help="a benchmark, or 'compare', or 'page'")
    parser.add_argument("files", nargs="*", type=Path, help="for compare: the report before and the report after")
    parser.add_argument("--quick", action="store_true", help="the same figures from fewer rounds, in under 60 s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report to FILE")
    parser.add_argument("--plot", type=Path, metavar="DIR", help="draw the figures as SVG and PNG in DIR")
    parser.add_argument("--from", type=Path, metavar="DIR", dest="source", help="for page: take over the reports in DIR first")
    return parser


def _console() -> Console:
    """Standard output; a file or a pipe gets lines that are long enough for every column."""
    return Console() if sys.stdout.isatty() else Console(width=150)


def _list() -> int:
    console = _console()
    for name in present():
        console.print(f"[bold]{name:<12}[/]{find(name).QUESTION}", highlight=False)
    usage = ("NAME [--quick] [--json FILE] [--plot DIR]", "compare BEFORE.json AFTER.json", "page [--from DIR]")
    console.print("\n" + "\n".join(f"python -m benchmarks {line}" for line in usage), markup=False, highlight=False)
    return DONE


def _run(name: str, *, quick: bool, json: Path | None, plot: Path | None) -> int:
    for target in (json.parent if json else None, plot.parent if plot else None):
        if target and not target.is_dir():
            return _usage(f"there is no folder {target}")  # said now, not after an hour of measuring
    benchmark = find(name)
    bench = Bench(name=name, question=benchmark.QUESTION, quick=quick)
    with bench.progress:
        benchmark.run(bench)
    finished = bench.report()
    if json:
        report.write(finished, json)
    _console().print(tables.results(finished))
    if any(result.noisy for result in finished.results.values()):
        print("warning: p75/p25 > 1.3 where it says noisy; run again on a quieter machine", file=sys.stderr)
    for file in plots.plot(finished, plot) if plot else ():
        print(f"drawn {file}", file=sys.stderr)
    return DONE


def _compare(files: list[Path]) -> int:
    if len(files) != 2:
        return _usage("compare takes two reports: before and after")
    try:
        before, after = (report.read(file) for file in files)
        found = compare.compare(before, after)
    except (report.ReportError, compare.NotComparableError) as exc:
        return _usage(str(exc))
    for warning in compare.warnings(before, after):
        print(f"warning: {warning}", file=sys.stderr)
    _console().print(tables.changes(found))
    worse = [change.key for change in found if change.bad]
    print(f"worse: {', '.join(worse)}" if worse else "nothing is worse beyond noise")
    return WORSE if worse else DONE


def _page(source: Path | None) -> int:
    try:
        written = page.write(source)
    except report.ReportError as exc:
        return _usage(str(exc))
    for file in written:
        print(file.relative_to(report.ROOT))
    return DONE


def _usage(problem: str) -> int:
    print(f"python -m benchmarks: {problem}", file=sys.stderr)
    return USAGE


if __name__ == "__main__":
    sys.exit(main())
