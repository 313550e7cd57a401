"""What every benchmark is handed: it interleaves what is compared, so that noise hits both sides alike."""

from __future__ import annotations

import gc
import random
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, TypeVar

from msgspec import structs
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import report, statistics
from benchmarks.statistics import Better, Rounds

T = TypeVar("T")
Samples = dict[str, list[list[float]]]
"""Per variant, per round, the seconds of each operation."""


@dataclass(slots=True, kw_only=True)
class Bench:
    """One run of one benchmark: times variants, keeps figures, and becomes a report."""

    name: str
    question: str
    quick: bool = False
    seed: int = 20260101
    params: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    results: dict[str, report.Result] = field(default_factory=dict, init=False)
    skipped: dict[str, str] = field(default_factory=dict, init=False)
    samples: dict[str, list[Any]] = field(default_factory=dict, init=False)
    progress: Progress = field(default_factory=lambda: _bar(Console(stderr=True)))
    _rounds: int = field(default=0, init=False)
    _when: str = field(default_factory=report.now, init=False)
    _machine: report.Machine = field(default_factory=report.machine, init=False)
    _draw: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._draw = random.Random(self.seed)
        self.params |= {"quick": self.quick, "seed": self.seed}

    def pick(self, full: T, quick: T) -> T:
        """*quick* in a ``--quick`` run, else *full*."""
        return quick if self.quick else full

    def interleave(
        self, variants: Mapping[str, Callable[[], object]], *, rounds: int, block: int = 1, warmup: int | None = None
    ) -> Samples:
        """Time each operation of each variant, in blocks of *block* whose order is shuffled anew in every round.

        *warmup* operations of each variant (a block, if not given) run first and are not counted.
        """
        taken: Samples = {name: [] for name in variants}
        for name, count, kept in self.schedule(list(variants), rounds=rounds, block=block, warmup=warmup):
            operation, times = variants[name], []
            for _ in range(count):
                start = perf_counter()
                operation()
                times.append(perf_counter() - start)
            if kept:
                taken[name].append(times)
        return taken

    async def interleave_async(
        self,
        variants: Mapping[str, Callable[[], Awaitable[object]]],
        *,
        rounds: int,
        block: int = 1,
        warmup: int | None = None,
    ) -> Samples:
        """:meth:`interleave` for coroutine functions; each operation is awaited before the next begins."""
        taken: Samples = {name: [] for name in variants}
        for name, count, kept in self.schedule(list(variants), rounds=rounds, block=block, warmup=warmup):
            operation, times = variants[name], []
            for _ in range(count):
                start = perf_counter()
                await operation()
                times.append(perf_counter() - start)
            if kept:
                taken[name].append(times)
        return taken

    def schedule(
        self, names: Sequence[str], *, rounds: int, block: int = 1, warmup: int | None = None
    ) -> Iterator[tuple[str, int, bool]]:
        """(variant, operations, whether they count), in the order to run them: for what is not timed one by one."""
        task = self.progress.add_task(" · ".join(names), total=rounds * len(names))
        yield from ((name, block if warmup is None else warmup, False) for name in names)
        for _ in range(rounds):
            for name in self._draw.sample(names, len(names)):
                gc.collect()  # a variant pays for its own garbage, not for that of the one before it
                yield name, block, True
                self.progress.advance(task)

    def ratio(
        self, key: str, *, ours: Rounds, other: Rounds, goal: float | None = None, goal_max: float | None = None,
        better: Better = "lower", paired: bool = True,
    ) -> report.Result:  # fmt: skip
        """Keep ours / other per round (*better* "lower"), or other / ours, "times faster" (*better* "higher")."""
        values = statistics.ratios(ours, other, better=better, paired=paired)
        self.samples |= {f"{key}.ours": _rounded(ours), f"{key}.other": _rounded(other)}
        unit = "ratio" if better == "lower" else "faster"
        return self.record(key, values, unit=unit, goal=goal, goal_max=goal_max, better=better)

    def record(
        self, key: str, values: Sequence[float], *, unit: str, goal: float | None = None,
        goal_max: float | None = None, better: Better = "lower",
    ) -> report.Result:  # fmt: skip
        """Keep one value per round. *goal* judges the median, *goal_max* the worst round."""
        if key in self.results:
            raise ValueError(f"{key} was recorded before; a figure has one name and is measured once")
        kept = [float(f"{value:.6g}") for value in values]
        unjudged = report.Result(
            median=statistics.median(kept), p25=statistics.quantile(kept, 0.25), p75=statistics.quantile(kept, 0.75),
            max=max(kept), ci=list(statistics.bootstrap(kept)), unit=unit, better=better, n=len(kept),
            goal=goal, goal_max=goal_max,
        )  # fmt: skip
        verdict = report.met(unjudged, worst=report.worst(kept, better))
        result = structs.replace(unjudged, met=verdict)
        self.samples[key] = kept
        self.results[key] = result
        self._rounds = max(self._rounds, len(kept))
        return result

    def count(self, key: str, values: Sequence[int], *, goal: int = 0) -> report.Result:
        """Keep a count of things that must not happen more than *goal* times in any round; a median would hide one."""
        return self.record(key, values, unit="count", goal=goal, goal_max=goal)

    def skip(self, name: str, why: str) -> None:
        """Say, in the table and in the file, that *name* did not run and *why*. Nothing is left out silently."""
        self.skipped[name] = why
        self.progress.console.print(f"skipped [bold]{name}[/]: {why}", highlight=False)

    def report(self) -> report.Report:
        """The run so far, in the form of ``schema.json``."""
        return report.Report(
            benchmark=self.name, schema=1, commit=report.commit(), when=self._when,
            machine=structs.replace(self._machine, load_end=report.load()),
            versions=report.versions(self.versions), question=self.question, params=self.params,
            rounds=self._rounds, results=self.results, skipped=self.skipped, samples=self.samples,
        )  # fmt: skip


def _rounded(rounds: Rounds) -> list[list[float]]:
    """Tenths of a microsecond are noise; the file stays readable without them."""
    return [[round(seconds, 7) for seconds in block] for block in rounds]


def _bar(console: Console) -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, console=console)
