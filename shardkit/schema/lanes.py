"""A lane is one connection to one server and the thread that uses it: it takes shards through their revisions, in order.

A shard stays in its lane from the first look to the last revision, so that what a backend had to load for it is loaded once;
only when revisions turn out to be slow are there more lanes, and half of the shards change over.
"""

from __future__ import annotations

import queue
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

from shardkit.core.fleet import Options, Step, Version, batch_size, connections, lock_timeout_ms, pause_s
from shardkit.core.shardmap import ShardMap
from shardkit.db.alone import Part, apply_alone
from shardkit.db.connect import connect_as, server_url, watched_conninfo
from shardkit.db.shards import lacking_tables, mend_shard
from shardkit.db.steps import (
    Connection,
    DriverError,
    Target,
    Trouble,
    VersionChangedError,
    apply,
    private,
    read_versions,
    trouble,
)
from shardkit.errors import MigrationError, ServerDownError
from shardkit.schema.render import Rendered
from shardkit.schema.workers import Workers
from shardkit.settings import Secret, Settings

RECONNECTS: Final = 3
STATEMENTS_OF_PYTHON: Final = 4  # nobody knows how many locks a revision in Python takes


@dataclass(frozen=True, slots=True)
class News:
    """What became of one revision in one shard; ``trouble`` None: it is done."""

    shard: int
    revision: str
    trouble: Trouble | None = None


@dataclass(slots=True)
class Shared:
    """What all lanes of a run know."""

    settings: Settings
    options: Options
    workers: Workers
    rendered: dict[str, Rendered] = field(default_factory=dict)
    news: queue.SimpleQueue[News | int] = field(default_factory=queue.SimpleQueue)
    stop: threading.Event = field(default_factory=threading.Event)
    slowest_ms: dict[str, float] = field(default_factory=dict)


class Lane:
    """One connection to the server called *name*, made by *info*, and its thread; the *url* is for worker processes."""

    def __init__(self, shared: Shared, name: str, url: str, info: Secret) -> None:
        self._shared, self.server, self._url, self._info = shared, name, url, info
        self._connection: Connection | None = None
        self._down: Trouble | None = None
        self.thread = ThreadPoolExecutor(1)

    def read(self, schemas: Sequence[str]) -> dict[str, Version]:
        """Versions of *schemas*. Raises ServerDownError."""
        try:
            return read_versions(self._open(), schemas)
        except DriverError as exc:
            if trouble(exc).down:
                raise ServerDownError(f"server {self.server!r} does not answer: {exc}; nothing was done") from exc
            raise

    def lacking(self, schemas: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Our own tables that *schemas* lack; nothing of a server that does not answer."""
        try:
            return lacking_tables(self._open(), schemas)
        except (DriverError, ServerDownError):
            return {}

    def mend(self, schema: str, tables: Sequence[str]) -> str:
        """Make our own *tables* in *schema*; what went wrong, if anything."""
        try:
            mend_shard(self._open(), schema, tables)
        except (DriverError, ServerDownError) as exc:
            return " ".join(str(exc).split())
        return ""

    def work(self, jobs: Mapping[tuple[Step, ...], Sequence[Target]], wave: int) -> None:
        """Take all shards through their steps; tells the news as it goes, and at the end *wave*. Raises no shard's error."""
        self._down = None
        try:
            self._work(jobs)
        finally:
            self._shared.news.put(wave)

    def _work(self, jobs: Mapping[tuple[Step, ...], Sequence[Target]]) -> None:
        most = self._shared.options.batch
        for steps, targets in jobs.items():
            for start in range(0, len(targets), most):
                group = list(targets[start : start + most])
                for step in steps:
                    if self._shared.stop.is_set():
                        return
                    group = self._step(group, step)

    def close(self) -> None:
        """End the thread, and then the connection."""
        self.thread.shutdown()
        if self._connection is not None:
            self._connection.close()

    def _open(self) -> Connection:
        if self._connection is None or self._connection.closed or self._connection.broken:
            connection = connect_as(self._info, self._shared.settings, name=f"server {self.server!r}", watched=True)
            self._connection = private(connection)
        return self._connection

    def _step(self, group: list[Target], step: Step) -> list[Target]:
        """Run *step* in the group; gives those that are there."""
        rendered, options = self._shared.rendered[step.revision], self._shared.options
        arrived: list[Target] = []
        while group and not self._shared.stop.is_set():
            alone = rendered.lasting or not rendered.pure
            size = 1 if alone else batch_size(slowest_ms=self._shared.slowest_ms.get(step.revision), options=options)
            batch, group = group[:size], group[size:]
            began = time.monotonic()
            if len(batch) > 1 and not self._down and self._together(batch, step, rendered):
                arrived += batch
            else:
                arrived += [target for target in batch if self._single(target, step, rendered)]
            took_ms = (time.monotonic() - began) * 1000 / len(batch)
            known = self._shared.slowest_ms.get(step.revision)
            self._shared.slowest_ms[step.revision] = took_ms if known is None else max(known * 0.9, took_ms)
        return arrived

    def _together(self, batch: list[Target], step: Step, rendered: Rendered) -> bool:
        """Several shards in one transaction; False if that failed, and then each has to be tried by itself."""
        count = len(batch) * rendered.count
        wait_ms = lock_timeout_ms(statements=count, options=self._shared.options)
        try:
            apply(self._open(), batch, step, rendered.statements, lock_timeout_ms=wait_ms)
        except (DriverError, MigrationError, ServerDownError):
            return False
        for target in batch:
            self._shared.news.put(News(target.shard, step.revision))
        return True

    def _single(self, target: Target, step: Step, rendered: Rendered) -> bool:
        """One shard, until it is there or its patience is over."""
        found = self._down or self._persist(target, step, self._way(target, step, rendered))
        if found is not None and found.down:
            self._down = found  # the wave's other shards would only wait for the same, one after the other
        if rendered.lasting and self._connection is not None:
            self._connection.close()  # with its settings and temporary tables: each shard gets a session of its own
        self._shared.news.put(News(target.shard, step.revision, found))
        return found is None

    def _way(self, target: Target, step: Step, rendered: Rendered) -> Callable[[], Trouble | None]:
        options = self._shared.options
        patience_ms = max(1, round(options.patience_s * 1000))  # 0 would be no limit at all
        wait_ms = lock_timeout_ms(statements=rendered.count or STATEMENTS_OF_PYTHON, options=options)

        def online() -> Trouble | None:
            return self._shared.workers.run(
                self._url, self.server, target, step, lock_timeout_ms=wait_ms, patience_ms=patience_ms
            )

        def alone() -> None:
            parts = [
                Part(statements, segment.transactional)
                for segment in rendered.segments
                for statements in ([segment.statements] if segment.transactional else [(s,) for s in segment.statements])
            ]
            apply_alone(self._open(), target, step, parts, lock_timeout_ms=wait_ms, patience_ms=patience_ms)

        def together() -> None:
            apply(self._open(), [target], step, rendered.statements, lock_timeout_ms=wait_ms)

        return online if rendered.online else together if rendered.pure else alone

    def _persist(self, target: Target, step: Step, run: Callable[[], Trouble | None]) -> Trouble | None:
        """Try again while others hold the locks, with growing pauses; after a lost connection look what became of it."""
        give_up, attempt, lost = time.monotonic() + self._shared.options.patience_s, 0, 0
        while True:
            attempt += 1
            try:
                found = run()
            except ServerDownError as exc:
                found = Trouble(str(exc), down=True)
            except (DriverError, VersionChangedError) as exc:
                found = trouble(exc)
            except MigrationError as exc:
                return Trouble(str(exc))
            if found is None or (not found.locked and self._there(target, step)):
                return None
            if found.down:
                lost += 1
            if not (found.locked or found.down) or lost > RECONNECTS or time.monotonic() > give_up:
                return found
            if self._shared.stop.wait(pause_s(attempt, chance=random.random())):  # noqa: S311  jitter, not a secret
                return found

    def _there(self, target: Target, step: Step) -> bool:
        """Whether the shard is at the end of *step* after all: an answer to COMMIT was lost, or somebody else was quicker."""
        try:
            return self.read([target.schema]).get(target.schema) == step.after
        except (DriverError, ServerDownError):
            return False


class Lanes:
    """All lanes, *width* of them to a server: always the same one for the same shard, as long as that does not change."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self.width = connections(slowest_ms=0.0, options=shared.options)
        self.servers: dict[int, str] = {}
        self._lanes: dict[str, list[Lane]] = {}
        self._order: tuple[ShardMap, dict[int, int]] | None = None

    def spread(self, shard_map: ShardMap, shards: Iterable[int]) -> Iterator[tuple[Lane, list[int]]]:
        """The *shards* of each lane."""
        work: dict[tuple[str, int], list[int]] = {}
        order = self._ordered(shard_map)
        for shard in shards:
            name = self.servers[shard] = shard_map.placement(shard).server
            work.setdefault((name, order[shard] % self.width), []).append(shard)
        for (name, number), mine in work.items():
            yield self.lane(shard_map, name, number), mine

    def lane(self, shard_map: ShardMap, name: str, number: int) -> Lane:
        """One of the lanes to the server called *name*."""
        lanes = self._lanes.setdefault(name, [])
        if number >= len(lanes):
            url = server_url(shard_map.server(name), self._shared.settings)
            info = watched_conninfo(url, self._shared.settings)
            lanes += [Lane(self._shared, name, url, info) for _ in range(len(lanes), self.width)]
        return lanes[number]

    def close(self) -> None:
        """End all lanes, each with what it is at."""
        for lanes in self._lanes.values():
            for lane in lanes:
                lane.close()

    def _ordered(self, shard_map: ShardMap) -> dict[int, int]:
        """Each shard's number among those of its server."""
        if self._order is None or self._order[0] is not shard_map:
            counts: Counter[str] = Counter()
            order = {}
            for shard, place in sorted(shard_map.placements.items()):
                order[shard] = counts[place.server]
                counts[place.server] += 1
            self._order = shard_map, order
        return self._order[1]
