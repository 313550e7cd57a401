"""The one JSON form of every benchmark: its types are its documentation, its checker and the source of schema.json."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

SCHEMA: Final = 1
SCHEMA_FILE: Final = Path(__file__).parent / "schema.json"
ROOT: Final = Path(__file__).parents[1]
NOISY: Final = 1.3

Key = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]*$", description="name of one figure")]


class ReportError(ValueError):
    """A file is not a report of this form; the message says what is wrong and where."""


class Machine(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Where it ran. Reports of different machines compare in ratios at best."""

    cores: Annotated[int, Meta(ge=1)]
    load: Annotated[float, Meta(ge=0, description="1-minute load average when the run began")]
    load_end: Annotated[float | None, Meta(description="the same when it ended, its own load included")] = None


class Result(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One figure: quantiles over *n* rounds, with the goal it is held against."""

    median: float
    p25: float
    p75: float
    max: float
    ci: Annotated[list[float], Meta(min_length=2, max_length=2, description="95 % bootstrap interval of the median")]
    unit: Annotated[str, Meta(min_length=1, description="'ratio' (ours / other), 'faster' (other / ours), 's', 'ms', …")]
    better: Literal["lower", "higher"]
    n: Annotated[int, Meta(ge=1)]
    goal: Annotated[float | None, Meta(description="the median must be on its better side")] = None
    goal_max: Annotated[float | None, Meta(description="the worst round must be on its better side")] = None
    met: Annotated[bool | None, Meta(description="null where there is no goal")] = None

    def __post_init__(self) -> None:
        figures = [self.median, self.p25, self.p75, self.max, *self.ci]
        if not all(math.isfinite(figure) for figure in figures):
            raise ValueError("every figure must be finite")
        if not self.p25 <= self.median <= self.p75 <= self.max:
            raise ValueError("p25 <= median <= p75 <= max does not hold")
        if not self.ci[0] <= self.ci[1]:
            raise ValueError("the interval ends before it begins")

    @property
    def noisy(self) -> bool:
        """Whether the quartiles are so far apart that the median says little."""
        return self.p25 > 0 and self.p75 / self.p25 > NOISY


class Report(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One run of one benchmark."""

    benchmark: Key
    schema: Literal[1]
    commit: Annotated[str, Meta(min_length=1)]
    when: Annotated[str, Meta(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$", description="start of the run, UTC")]
    machine: Machine
    versions: dict[str, str]
    question: Annotated[str, Meta(min_length=1)]
    params: dict[str, Any]
    rounds: Annotated[int, Meta(ge=0)]
    results: dict[Key, Result]
    skipped: Annotated[dict[str, str], Meta(description="what did not run, and why")]
    samples: Annotated[
        dict[str, list[float | list[float]]],
        Meta(description="<key>: one value per round; <key>.ours, <key>.other: the seconds of each operation, by round"),
    ]

    def __post_init__(self) -> None:
        for key, result in self.results.items():
            if len(self.samples.get(key, ())) != result.n:
                raise ValueError(f"results.{key}.n is {result.n}, but it has {len(self.samples.get(key, ()))} samples")
            if result.met is not met(result, worst=worst(self.samples[key], result.better)):
                raise ValueError(f"results.{key}.met contradicts its goal")


def worst(values: list[Any], better: str) -> float:
    """The value of the round that went worst."""
    return float(max(values) if better == "lower" else min(values))


def met(result: Result, *, worst: float) -> bool | None:
    """Whether both goals hold, or None where there is none."""
    held = [(result.median, result.goal), (worst, result.goal_max)]
    sign = 1 if result.better == "lower" else -1
    verdicts = [sign * value <= sign * goal for value, goal in held if goal is not None]
    return all(verdicts) if verdicts else None


def read(path: Path) -> Report:
    """The report in *path*. Raises ReportError where the file is none."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Report)
    except OSError as exc:
        raise ReportError(f"cannot read {path}: {exc.strerror}") from exc
    except msgspec.DecodeError as exc:  # ValidationError is one of them
        raise ReportError(f"{path} is no benchmark report: {exc}") from exc


def write(report: Report, path: Path) -> None:
    """Write *report*, checked once more as a reader would, so that no run leaves a file nobody can read."""
    text = msgspec.json.encode(report)
    msgspec.json.decode(text, type=Report)
    path.write_bytes(text + b"\n")


def small(report: Report) -> Report:
    """*report* without the single operations: one value per round stays, which the intervals can be checked with."""
    kept = {key: report.samples[key] for key in report.results}
    return msgspec.structs.replace(report, samples=kept)


def schema_json() -> str:
    """JSON Schema of the form; ``schema.json`` is this text and a test holds them together."""
    return json.dumps(msgspec.json.schema(Report), indent=2, ensure_ascii=False) + "\n"


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def machine() -> Machine:
    return Machine(cores=len(os.sched_getaffinity(0)), load=load())


def load() -> float:
    return round(os.getloadavg()[0], 2)


def commit() -> str:
    """Short hash of the checkout, with ``-dirty`` where files differ from it, or ``unknown``."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"],
            cwd=ROOT, capture_output=True, text=True, check=True, timeout=10, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return described.stdout.strip() or "unknown"


def versions(seen: Mapping[str, str]) -> dict[str, str]:
    """Versions of what always matters, and of what the benchmark itself met (*seen*: servers above all)."""
    found = {"python": platform.python_version()}
    for package in ("sqlalchemy", "psycopg", "redis", "hashring", "alembic"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found | dict(seen)
