"""Gives each server a fixed amount of CPU, so that more servers mean more capacity even where all share two cores.

A quota of the kernel's CPU control group, version 1 or 2, on the postmaster and all its children (later ones inherit it).
That is what "a server" is in a data centre: an amount of work per second. It needs a group this process may make: root's,
or a delegated one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Final

from benchmarks.local import family

PERIOD_US: Final = 20_000
SMALLEST_US: Final = 1_000
ROOT: Final = Path("/sys/fs/cgroup")


class CapacityUnavailableError(RuntimeError):
    """The machine does not let us limit a process's CPU; the message says why. Nothing was changed."""


@contextmanager
def fixed_capacity(servers: Mapping[str, int], *, cores: float) -> Iterator[None]:
    """*servers* (name → process id of the postmaster) get *cores* of CPU each while the block lasts."""
    quota_us = max(SMALLEST_US, round(cores * PERIOD_US))
    parent, limits = place(Path("/proc/self/cgroup").read_text("ascii"), quota_us=quota_us)
    groups: dict[str, Path] = {}
    try:
        for name, pid in servers.items():
            group = parent / f"shardkit-bench-{os.getpid()}-{name}"
            try:
                group.mkdir()
                groups[name] = group
                for file, value in limits.items():
                    (group / file).write_text(value, "ascii")
                _enter(group, [pid])
            except OSError as exc:
                raise CapacityUnavailableError(f"no CPU quota could be set in {parent}: {exc.strerror}") from exc
        yield
    finally:
        for name, group in groups.items():
            _enter(parent, [servers[name]])
            _remove(group)


def used_s(pids: Iterable[int]) -> float:
    """CPU seconds that the processes *pids* and all below them have used so far; those that ended are not counted."""
    return sum(_cpu_s(pid) for pid in family(pids))


def place(own_groups: str, *, quota_us: int) -> tuple[Path, dict[str, str]]:
    """Where a process of *own_groups* (its ``/proc/PID/cgroup``) makes groups, and the files that limit one."""
    own = {controllers: path for _, controllers, path in (line.split(":", 2) for line in own_groups.splitlines())}
    for controllers, path in own.items():
        if "cpu" in controllers.split(","):
            limits = {"cpu.cfs_period_us": str(PERIOD_US), "cpu.cfs_quota_us": str(quota_us)}
            return ROOT / "cpu" / path.lstrip("/"), limits
    parent = ROOT / own.get("", "/").lstrip("/")
    try:
        if "cpu" in (parent / "cgroup.subtree_control").read_text("ascii").split():
            return parent, {"cpu.max": f"{quota_us} {PERIOD_US}"}
    except OSError:
        pass
    raise CapacityUnavailableError("no CPU control group is delegated to this process")


def _enter(group: Path, pids: list[int]) -> None:
    """Move *pids* and their children; children born meanwhile are caught by looking again."""
    moved: set[int] = set()
    while left := family(pids) - moved:
        for pid in left:
            with suppress(ProcessLookupError):  # it ended just now
                (group / "cgroup.procs").write_text(str(pid), "ascii")
        moved |= left


def _remove(group: Path, *, timeout_s: float = 5.0) -> None:
    deadline = monotonic() + timeout_s
    while True:
        try:
            group.rmdir()
            return
        except OSError:  # the last process is still on its way out
            if monotonic() > deadline:
                raise
            sleep(0.01)


def _cpu_s(pid: int) -> float:
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text("ascii").split()[0]) / 1e9  # /proc/PID/stat has whole ticks only
    except (FileNotFoundError, ProcessLookupError):
        return 0.0  # it ended just now
