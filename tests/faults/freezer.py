"""Freezes a server's processes through the kernel's cgroup freezer: not one of them runs, not even to take a signal."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

import pytest

from shardkit.local.keeper import children

ROOT = Path("/sys/fs/cgroup")
PLACES = (  # version 1's own hierarchy, version 2 beside version 1, version 2 alone
    (ROOT / "freezer", "freezer.state", "FROZEN", "THAWED"),
    (ROOT / "unified", "cgroup.freeze", "1", "0"),
    (ROOT, "cgroup.freeze", "1", "0"),
)
BOUND = 1000  # looks, a hundredth of a second apart


@contextlib.contextmanager
def frozen(root):
    """Inside the block *root* and its children are frozen. Skips the test where no freezer can be used."""
    group, (switch, on, off) = _make_group()
    before = {root: _group_of(root, group.parent)}
    try:
        (group / "cgroup.procs").write_text(str(root), "ascii")  # first: children that it has from now on are born there
        for pid in children(root):  # a PostgreSQL server has no grandchildren
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # it has ended
                before[pid] = _group_of(pid, group.parent)
                (group / "cgroup.procs").write_text(str(pid), "ascii")
        (group / switch).write_text(on, "ascii")
        _until(lambda: _is_frozen(group), "frozen")
        try:
            yield
        finally:
            (group / switch).write_text(off, "ascii")
    finally:
        _until(lambda: _left(group, before, root), "empty")
        group.rmdir()


def _make_group():
    said = []
    for place, *how in PLACES:
        group = place / f"shardkit-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError as exc:
            said.append(f"{place}: {exc.strerror}")
            continue
        if (group / how[0]).exists():
            return group, how
        said.append(f"{place}: no {how[0]}")
        with contextlib.suppress(OSError):
            group.rmdir()
    pytest.skip(f"no cgroup freezer can be used here ({'; '.join(said)})")


def _group_of(pid, hierarchy):
    """The group of *hierarchy* that *pid* is in now."""
    for line in Path(f"/proc/{pid}/cgroup").read_text("ascii").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == ("freezer" if hierarchy.name == "freezer" else ""):
            return hierarchy / path.lstrip("/")
    raise AssertionError(f"process {pid} is in no group of {hierarchy}")


def _left(group, before, root):
    """Whether all have gone back to where they came from; a server that goes on has new children at once."""
    pids = (group / "cgroup.procs").read_text("ascii").split()
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            (before.get(int(pid), before[root]) / "cgroup.procs").write_text(pid, "ascii")
    return not pids


def _is_frozen(group):
    """What the kernel says: all of the group stand still."""
    if (group / "freezer.state").exists():
        return (group / "freezer.state").read_text("ascii").strip() == "FROZEN"
    return "frozen 1" in (group / "cgroup.events").read_text("ascii")


def _until(condition, what):
    pause = threading.Event()
    for _ in range(BOUND):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError(f"the group did not become {what}")
