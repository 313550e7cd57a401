"""Says which figures of two reports differ by more than noise, and which of them got worse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from benchmarks.report import Report, Result

SMALLEST: Final = 0.05
"""Changes of the median below this share are never reported, however sure they are."""

Verdict = Literal["same", "better", "worse", "missing", "skipped", "new"]


class NotComparableError(ValueError):
    """The two reports do not answer the same question."""


@dataclass(frozen=True, slots=True)
class Change:
    """What became of one figure. *before* or *after* is None where its report has no such figure."""

    key: str
    verdict: Verdict
    before: Result | None
    after: Result | None

    @property
    def bad(self) -> bool:
        """Whether it makes the comparison fail. A figure that went missing may hide that it got worse."""
        return self.verdict in ("worse", "missing")


def compare(before: Report, after: Report) -> list[Change]:
    """Every figure of either report, those of *before* first. Raises NotComparableError."""
    if before.benchmark != after.benchmark:
        raise NotComparableError(f"{before.benchmark!r} and {after.benchmark!r} are different benchmarks")
    keys = [*before.results, *(key for key in after.results if key not in before.results)]
    return [_change(key, before, after) for key in keys]


def _change(key: str, before: Report, after: Report) -> Change:
    old, new = before.results.get(key), after.results.get(key)
    if old is None:
        return Change(key, "new", None, new)
    if new is None:
        return Change(key, "skipped" if key in after.skipped else "missing", old, None)
    if (old.unit, old.better) != (new.unit, new.better):
        raise NotComparableError(f"{key} is in {old.unit}, {old.better} is better, but in the other report {new.unit}")
    return Change(key, _verdict(old, new), old, new)


def _verdict(old: Result, new: Result) -> Verdict:
    """Two medians differ when their 95 % intervals lie apart and the step is not too small to matter."""
    if _broke_worst(old, new):
        return "worse"
    apart = new.ci[0] > old.ci[1] or new.ci[1] < old.ci[0]
    step = abs(new.median - old.median)
    if not apart or step <= SMALLEST * abs(old.median):
        return "same"
    return "better" if (new.median < old.median) == (new.better == "lower") else "worse"


def _broke_worst(old: Result, new: Result) -> bool:
    """A limit on the worst round (no error, no lost row) knows no noise: one breach is one too many."""
    return new.goal_max is not None and old.met is True and new.met is False and new.better == "lower" \
        and new.max > new.goal_max  # fmt: skip


def warnings(before: Report, after: Report) -> list[str]:
    """Reasons to trust the comparison less."""
    found = []
    if before.machine.cores != after.machine.cores:
        found.append(f"different machines: {before.machine.cores} and {after.machine.cores} cores")
    unlike = sorted(
        key for key in before.params.keys() | after.params.keys() if before.params.get(key) != after.params.get(key)
    )
    if unlike:
        found.append(f"different parameters: {', '.join(unlike)}")
    differing = sorted(
        f"{name} {before.versions.get(name, 'none')} → {after.versions.get(name, 'none')}"
        for name in before.versions.keys() | after.versions.keys()
        if before.versions.get(name) != after.versions.get(name)
    )
    if differing:
        found.append(f"different versions: {', '.join(differing)}")
    return found
