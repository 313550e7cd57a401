"""Counts a program's units of work by tenant and shard, and tells the catalog now and then; no unit of work waits for either.

What a unit of work pays is one append to a deque, and a statement another one, with the time it took. A thread counts what is
in them, in bounded memory, and sends a row every ``load_interval_s``. Where the catalog does not answer the counts are kept,
and go with the next row.
"""

from __future__ import annotations

import logging
import random
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final
from uuid import uuid4

from shardkit.core.hashing import TenantKey, tenant_from_text
from shardkit.core.latency import Bucket, Latencies
from shardkit.core.shardmap import Route
from shardkit.core.sketch import Sketch
from shardkit.db.connect import connect_admin, transaction
from shardkit.db.forked import in_forked_child
from shardkit.settings import Settings
from shardkit.sql import statements

log = logging.getLogger("shardkit.load")
SQL: Final = statements("loads")
UNCOUNTED: Final = 200_000
"""Units of work, and statements, that can wait to be counted; of more in one TICK_S the oldest are not counted."""
TICK_S: Final = 0.5
PLACES: Final = 256
SENT: Final = 100
KEPT_S: Final = 3600.0
LATELY_S: Final = 3600.0


@dataclass(frozen=True, slots=True)
class TenantLoad:
    """A tenant with the units of work done for it: between ``units - error`` and ``units``."""

    tenant: TenantKey
    shard: int
    units: int
    error: int = 0


@dataclass(frozen=True, slots=True)
class Load:
    """Units of work: ``total``, by shard, and of the most active tenants, in the last ``window_s`` seconds.

    ``p99_s``: by shard, the seconds within which 99 of 100 statements were answered; at most 19 % too high.
    """

    window_s: float = 0.0
    total: int = 0
    shards: Mapping[int, int] = field(default_factory=dict)
    tenants: tuple[TenantLoad, ...] = ()
    p99_s: Mapping[int, float] = field(default_factory=dict)


class LoadCount:
    """Counts for one process. ``seen(route)`` is all that a unit of work does, and ``took((shard, seconds))`` all that a
    statement does; both are ``deque.append`` itself. ``took`` is None where nothing is counted.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._waiting: deque[Route] = deque(maxlen=UNCOUNTED if settings.count_loads else 0)
        self._timed: deque[tuple[int, float]] = deque(maxlen=UNCOUNTED)
        self.seen = self._waiting.append
        self.took: Callable[[tuple[int, float]], None] | None = self._timed.append if settings.count_loads else None
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._sketch: Sketch[tuple[TenantKey, int]]
        self._shards: Counter[int]
        self._latencies: Latencies
        self._begin()
        in_forked_child(self._after_fork)
        if settings.count_loads:
            self._start()

    def now(self) -> Load:
        """What was counted since the catalog was last told."""
        with self._lock:
            self._count()
            return self._load()

    def close(self) -> None:
        """Stop. What was counted since the last row is not sent: a program that ends waits for nobody."""
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=self._settings.connect_timeout_s)

    def _after_fork(self) -> None:
        """Begin at nothing. What the parent did is the parent's to tell."""
        stopped = self._stop.is_set()
        self._waiting.clear()
        self._timed.clear()
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._begin()
        if stopped:
            self._stop.set()
        elif self._thread is not None:
            self._start()

    def send(self) -> bool:
        """Tell the catalog now; False where there was nothing to tell. Raises what the catalog says."""
        with self._lock:
            self._count()
            load, sketch, shards, latencies = self._load(), self._sketch, self._shards, self._latencies
            if not load.total:
                return False
            self._renew()
        try:
            self._put(load, latencies.buckets())
        except BaseException:
            with self._lock:  # back to what was counted meanwhile
                sketch.add({found.key: found.times - found.error for found in self._sketch.top(2 * PLACES)})
                self._began -= load.window_s
                latencies.merge(self._latencies)
                self._sketch, self._shards, self._latencies = sketch, shards + self._shards, latencies
            raise
        return True

    def _begin(self) -> None:
        self._program = uuid4()
        self._renew()

    def _renew(self) -> None:
        self._began = time.monotonic()
        self._sketch, self._shards, self._latencies = Sketch(PLACES), Counter(), Latencies()

    def _start(self) -> None:
        self._thread = threading.Thread(target=_keep_telling, args=(weakref.ref(self),), name="shardkit-load", daemon=True)
        self._thread.start()

    def _count(self) -> None:
        waiting = self._waiting
        counts = Counter(waiting.popleft() for _ in range(len(waiting)))
        tenants: Counter[tuple[TenantKey, int]] = Counter()
        for route, count in counts.items():
            self._shards[route.shard] += count
            if route.tenant is not None:
                tenants[route.tenant, route.shard] += count
        self._sketch.add(tenants)
        timed = self._timed
        self._latencies.add(timed.popleft() for _ in range(len(timed)))

    def _load(self) -> Load:
        hot = tuple(TenantLoad(*key, times, error) for key, times, error in self._sketch.top(SENT))
        window_s = max(time.monotonic() - self._began, 0.001)
        return Load(window_s, sum(self._shards.values()), MappingProxyType(dict(self._shards)), hot, self._latencies.p99_s())

    def _put(self, load: Load, latencies: list[Bucket]) -> None:
        with connect_admin(self._settings.catalog_url, self._settings) as catalog, transaction(catalog):
            catalog.execute("SELECT set_config('statement_timeout', '5s', true)")
            catalog.execute(
                SQL["put"],
                {
                    "program": self._program,
                    "window_s": load.window_s,
                    "shards": list(load.shards),
                    "units": list(load.shards.values()),
                    "tenants": [str(hot.tenant) for hot in load.tenants],
                    "tenant_shards": [hot.shard for hot in load.tenants],
                    "tenant_units": [hot.units for hot in load.tenants],
                    "tenant_errors": [hot.error for hot in load.tenants],
                },
            )
            catalog.execute(SQL["forget"], {"older_s": KEPT_S})
            if catalog.execute(SQL["has_latencies"]).fetchone() == (True,):
                shards, buckets, times = [list(column) for column in zip(*latencies, strict=True)] or [[], [], []]
                put = {"program": self._program, "shards": shards, "buckets": buckets, "times": times}
                catalog.execute(SQL["put_latencies"], put)
                catalog.execute(SQL["forget_latencies"], {"older_s": KEPT_S})


def lately(connection: Any, *, tenant_type: Any, since_s: float = LATELY_S, most: int = SENT) -> Load:
    """What all programs together did in the last *since_s* seconds, as far as they have told; nothing in an older catalog."""
    if not connection.execute(SQL["has_loads"]).fetchone()[0]:
        return Load(since_s)
    shards = dict(connection.execute(SQL["shards"], {"since_s": since_s}).fetchall())
    tenants = connection.execute(SQL["tenants"], {"since_s": since_s, "most": most}).fetchall()
    hot = tuple(
        TenantLoad(tenant_from_text(tenant, tenant_type), shard, units, error) for tenant, shard, units, error in tenants
    )
    return Load(since_s, sum(shards.values()), MappingProxyType(shards), hot)


def lately_took(connection: Any, *, since_s: float) -> Latencies:
    """How long each shard took to answer all programs together, as ``lately``."""
    if not connection.execute(SQL["has_latencies"]).fetchone()[0]:
        return Latencies()
    return Latencies(Bucket(*row) for row in connection.execute(SQL["latencies"], {"since_s": since_s}).fetchall())


def _keep_telling(alive: weakref.ref[LoadCount]) -> None:
    """The thread's work: count what waits, and tell the catalog when it is time. Ends with its count."""
    due, silent = 0.0, False
    while (count := alive()) is not None:
        stop, interval = count._stop, count._settings.load_interval_s
        due = due or time.monotonic() + interval * random.uniform(0.5, 1.0)  # noqa: S311  so that programs take turns
        with count._lock:
            count._count()
        if time.monotonic() >= due:
            due = 0.0
            try:
                count.send()
                silent = False
            except Exception as exc:  # noqa: BLE001  nothing depends on it, and the next row has it all
                if not silent:
                    log.warning("the catalog was not told of the load, it is kept: %s", exc)
                silent = True
        del count
        if stop.wait(min(TICK_S, interval)):
            return
