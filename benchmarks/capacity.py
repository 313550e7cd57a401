"""A server of fixed capacity: a gate in front of it lets so many statements a second through, one after the other.

So what one server can do is a number that is known, not one that was measured, and n servers can do n times that and no
more, on however few cores: what a run stays below it was lost on the way there (routing, pools, an uneven placement, too
few clients). What PostgreSQL itself would do with a machine of its own is not asked.
"""

from __future__ import annotations

import os
import struct
import sys
from bisect import bisect_left
from time import monotonic
from typing import Final

from benchmarks.delay_proxy import End, Proxy, ProxyProcess, run_as_told

_BEFORE_START: Final = {80877103, 80877104}
"""Codes of SSLRequest and GSSENCRequest: another first packet follows."""


class Gate(ProxyProcess):
    """A gate in front of ``host:port``, as its own process: *per_s* statements a second."""

    def __init__(self, host: str, port: int, *, per_s: float) -> None:
        super().__init__([sys.executable, "-m", "benchmarks.capacity", host, str(port), str(per_s)])

    def passed(self, begin: float, end: float) -> int:
        """Statements let through from *begin* to before *end*, on the monotonic clock."""
        return int(self.ask(f"{begin!r} {end!r}"))


class Pace:
    """Serves one statement at a time, each for ``1 / per_s`` seconds; time in which there was none is not made up for."""

    def __init__(self, per_s: float) -> None:
        self._each_s = 1 / per_s
        self._free_at = 0.0
        self._ends: list[float] = []

    def due(self, now: float, statements: int) -> float:
        """When the last of so many *statements* that came in at *now* is served: never before any that came earlier."""
        self._free_at = max(self._free_at, now) if statements else self._free_at
        for _ in range(statements):
            self._free_at += self._each_s
            self._ends.append(self._free_at)
        return max(self._free_at, now)

    def passed(self, begin: float, end: float) -> int:
        """Statements served from *begin* to before *end*."""
        return bisect_left(self._ends, end) - bisect_left(self._ends, begin)


class Statements:
    """Counts what one client asks its server to execute: Execute and Query messages, in bytes that come in any pieces."""

    def __init__(self) -> None:
        self._started = False
        self._head = b""
        self._skip = 0

    def feed(self, data: bytes) -> int:
        """How many statements begin in *data*."""
        found, at = 0, 0
        while at < len(data):
            if self._skip:
                step = min(self._skip, len(data) - at)
                self._skip -= step
                at += step
                continue
            wanted = 5 if self._started else 8
            step = min(wanted - len(self._head), len(data) - at)
            self._head += data[at : at + step]
            at += step
            if len(self._head) == wanted:
                found += self._begins(self._head)
                self._head = b""
        return found

    def _begins(self, head: bytes) -> int:
        if self._started:
            kind, length = struct.unpack("!cI", head)
            self._skip = length - 4
            return kind in b"QE"
        length, code = struct.unpack("!II", head)
        self._skip = length - 8
        self._started = code not in _BEFORE_START
        return 0


class _GateProxy(Proxy):
    """Requests pass at the pace, answers at once."""

    def __init__(self, target: tuple[str, int], *, per_s: float) -> None:
        super().__init__(target, one_way_s=0)
        self._pace = Pace(per_s)
        self._counts: dict[End, Statements] = {}

    def take(self, end: End, data: bytes) -> None:
        assert end.other
        if not end.accepted:
            self.carry(end.other, data)
            return
        statements = self._counts.setdefault(end, Statements()).feed(data)
        self.carry_at(self._pace.due(monotonic(), statements), end.other, data)
        if not data:
            del self._counts[end]

    def told(self) -> bool:
        line = os.read(sys.stdin.fileno(), 1024)
        if line:
            print(self._pace.passed(*map(float, line.split())), flush=True)
        return bool(line)


if __name__ == "__main__":
    run_as_told(_GateProxy, "Let PER_S statements a second through to", "per_s")
