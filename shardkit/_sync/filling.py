# Generated from shardkit/_async/filling.py by tests/generate_sync.py: change that file instead.
"""What happens on a miss: one caller loads and fills, the others of its process wait for it, those elsewhere for a while.

A caller may use what another one loaded only if the load began after it joined, or if the value was put into Redis after
it joined: both prove that nothing committed before it asked is missing.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Sequence
from itertools import count
from random import uniform
from typing import Any, Final, NamedTuple

from shardkit._sync import colour
from shardkit._sync.cache import Store
from shardkit._sync.nodes import UnreachableError
from shardkit.core import cacheproto as proto
from shardkit.core.shardmap import Route
from shardkit.db.forked import in_forked_child
from shardkit.orm.cacheloads import Loaded
from shardkit.orm.cachestats import CacheStats

Load = Callable[[], Any]
"""Gives the value and what it was loaded in."""
LEASE_MS: Final = 3000
GATHER_S: Final = 0.002
"""Who leads after it waited in vain, lets the others that did so join it first."""
UNCACHED: Final = 8
"""Loads past the cache at a time; more wait, up to UNCACHED_WAIT_S."""
UNCACHED_WAIT_S: Final = 5.0
JOIN_S: Final = 5.0
"""How long a caller waits for another one of its process."""
WAIT_S: Final = 0.05
"""How long it waits for another process, unless loads are known to take longer; then it loads without filling."""


class Grounds(NamedTuple):
    """What a fill needs to be past, and the term in which its lease was given."""

    barrier: int = 0
    term: bytes = b""


class Flight:
    """One load under way in this process."""

    __slots__ = ("done", "filled", "loaded", "selecting", "value")

    def __init__(self) -> None:
        self.done = colour.Signal()
        self.selecting = self.loaded = self.filled = False
        self.value: Any = None


class Filler:
    """Loads and fills, for all entities of one kit. Barriers are set here, when a shard's is missing."""

    def __init__(self, store: Store, counts: CacheStats, *, barrier_ttl_ms: int, new_xid: Callable[[Route], Any]) -> None:
        self._store, self._counts = store, counts
        self._barrier_ttl_ms, self._new_xid = barrier_ttl_ms, new_xid
        self._flights: dict[tuple[str, str], Flight] = {}
        self._filling: dict[tuple[str, str], Flight] = {}
        """What is loaded and on its way to Redis; too late to join, but known to end soon."""
        self._usual_s = 0.0
        self._uncached = colour.Slots(UNCACHED)
        self._token, self._turn = secrets.token_hex(6), count()
        in_forked_child(self._after_fork)

    def _after_fork(self) -> None:
        self._flights, self._filling = {}, {}  # whoever was to end them is not here

    def one(self, tag: str, route: Route, want: Any, outdated: bytes, load: Load) -> Any:
        """The value of *want*, loaded by *load* unless somebody else does it."""
        at = (tag, want.name)
        for turn in range(4):
            mine = Flight()
            flight = self._flights.setdefault(at, mine)
            if flight is mine:
                try:
                    if turn:
                        colour.pause(GATHER_S)
                    return self._lead(at, route, want, outdated, load, flight)
                finally:
                    self._leave(at, flight)
                    flight.done.set()
            early = not flight.selecting
            self._counts.waits += 1
            if not flight.done.wait(JOIN_S):
                break
            if flight.filled or (early and flight.loaded):
                return want.again(flight.value)
            found = self._look_again(tag, want)
            if found[0]:
                return found[1]
        return (self.bypass(load))[0]

    def _look_again(self, tag: str, want: Any) -> tuple[bool, Any]:
        """What is stored by now, for one whose leader had nothing that it may use."""
        try:
            (raw,) = self._store.fetch(tag, (want.name,))
        except UnreachableError:
            return False, None
        found: tuple[bool, Any] = want.decode(raw) if raw is not None else (False, None)
        return found

    def bypass(self, load: Load) -> tuple[Any, Loaded]:
        """Load without filling; few at a time, for nothing else holds the others back then."""
        taken = self._uncached.take(UNCACHED_WAIT_S)
        try:
            return self._timed(load)
        finally:
            if taken:
                self._uncached.give()

    def _lead(
        self,
        at: tuple[str, str],
        route: Route,
        want: Any,
        outdated: bytes,
        load: Load,
        flight: Flight,
    ) -> Any:
        tag, _ = at
        try:
            marker, grounds, found = self._lease(tag, route, want, outdated)
        except UnreachableError:
            self._counts.down += 1
            marker, grounds, found = b"", Grounds(), (False, None)
        if found[0]:
            self._leave(at, flight)
            return found[1]  # joined ones ask for themselves: it may have been there before they came
        flight.selecting = True
        started = time.monotonic()
        value, loaded = (self._timed(load) if marker else self.bypass(load))
        flight.value, flight.loaded = value, True
        if marker:
            self._filling[at] = flight
            self._leave(at, flight)  # who comes from now on could miss what is committed from now on
            load_ms = round((time.monotonic() - started) * 1000)
            try:
                flight.filled = self.fill(tag, [(want, value, marker)], grounds, loaded, load_ms)
            finally:
                self._filling.pop(at, None)
        return value

    def _leave(self, at: tuple[str, str], flight: Flight) -> None:
        if self._flights.get(at) is flight:
            del self._flights[at]

    def _timed(self, load: Load) -> tuple[Any, Loaded]:
        started = time.monotonic()
        self._counts.loads += 1
        answer: tuple[Any, Loaded] = load()
        self._usual_s += (time.monotonic() - started - self._usual_s) * 0.1
        return answer

    def _lease(self, tag: str, route: Route, want: Any, outdated: bytes) -> tuple[bytes, Grounds, tuple[bool, Any]]:
        """Marker and grounds of a lease; or what was there meanwhile; or nothing (b""), and one loads without filling."""
        give_up, pause = 0.0, 0.001
        while True:
            grounds, (answer,) = self.leases(tag, route, [want], [outdated])
            if answer[:1] == b"L":
                return answer[1:], grounds, (False, None)
            if answer[:1] == b"V":
                return b"", grounds, want.decode(answer[1:])
            if answer != b"W":
                return b"", grounds, (False, None)
            ours = self._filling.get((tag, want.name))
            if ours is not None and ours.done.wait(JOIN_S):
                continue
            now = time.monotonic()
            give_up = give_up or now + max(WAIT_S, min(4 * self._usual_s, 1.0))
            if now > give_up:
                self._counts.busy += 1
                return b"", grounds, (False, None)
            colour.pause(pause)
            pause = min(pause * 2, 0.02)
            (raw,) = self._store.fetch(tag, [want.name])
            if raw is not None:
                found = want.decode(raw)
                if found[0]:
                    return b"", grounds, found

    def leases(
        self, tag: str, route: Route, wants: Sequence[Any], outdated: Sequence[bytes]
    ) -> tuple[Grounds, list[bytes]]:
        """Grounds and the script's answer for each of *wants*, setting the barrier first where it is on us to do so."""
        for _ in range(2):
            token = f"{self._token}.{os.getpid()}.{next(self._turn)}"
            reply, term = self._store.lease(
                tag, [w.name for w in wants], token=token, epoch=route.epoch, lease_ms=LEASE_MS, outdated=outdated
            )
            first = bytes(reply[0])
            if first == b"P":
                xid = self._new_xid(route)
                new = proto.pack_barrier(epoch=route.epoch, xid=xid, term=term)
                self._store.swap(tag, [("@b", b"P|" + token.encode(), new, self._barrier_ttl_ms)])
            elif first[:1] == b"B":
                return Grounds(proto.parse_barrier(first), term), [bytes(one) for one in reply[1:]]
            else:
                break
        return Grounds(), [b"E"] * len(wants)

    def fill(
        self, tag: str, taken: Sequence[tuple[Any, Any, bytes]], grounds: Grounds, loaded: Loaded, load_ms: int
    ) -> bool:
        """Put what was loaded under leases into Redis, or give the leases back. Whether all is there."""
        changes, filling = [], []
        for want, value, marker in taken:
            new = None
            xids = proto.parse_marker(marker).xids
            if not (loaded.may_fill and proto.settled(xids, grounds.barrier, loaded.snapshot)) or (
                loaded.snapshot.standby and not xids
            ):
                self._counts.unsettled += 1  # what nobody marked, a standby may simply not have yet
            elif value is None:
                new = proto.ABSENT
            else:
                new = want.encode(value, xmin=loaded.snapshot.xmin, load_ms=load_ms)
            filling.append(new is not None)
            if new is None:
                changes.append((want.name, marker, proto.give_back(marker), 0))
            else:
                declared = want.entity.declared
                ttl_s = declared.negative_ttl_s if new == proto.ABSENT else declared.ttl_s
                changes.append((want.name, marker, new + grounds.term, max(1, round(ttl_s * 1000 * uniform(0.9, 1.1)))))  # noqa: S311  # jitter
        try:
            done = self._store.swap(tag, changes)
        except UnreachableError:
            self._counts.down += 1
            return False
        filled = [d and f for d, f in zip(done, filling, strict=True)]
        self._counts.fills += sum(filled)
        self._counts.lost += len(done) - sum(done)
        return all(filled)
