"""One run over the fleet: what is known, what is held, what is done; the lanes work, this waits and writes down.

The shards' own version rows say what is left to do, the shard locks keep moves away meanwhile, the ledger tells the story.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from shardkit.catalog.ledger import Ledger, hold_shards, let_go, moving_shards, read_ledger
from shardkit.catalog.rows import load_map, newest_map
from shardkit.core.fleet import Behind, Found, Plan, State, Step, Version, Why, must_stop, plan, settled
from shardkit.core.names import schema_name
from shardkit.core.shardmap import ShardMap
from shardkit.db.connect import server_url
from shardkit.db.steps import Target
from shardkit.errors import ServerDownError
from shardkit.schema.lanes import Lane, News, Shared
from shardkit.schema.render import render
from shardkit.schema.tree import Direction, Tree
from shardkit.settings import Settings

LEDGER_EVERY_S: Final = 0.2
Progress = Callable[[int, int, int], None]
"""Hears how many shards are done, of how many, and how many failed."""


@dataclass(frozen=True, slots=True)
class Report:
    """How a run ended. ``behind`` names every shard that is not at the target, those left out on purpose too."""

    target: str | None
    direction: Direction
    current: int
    done: tuple[int, ...] = ()
    behind: tuple[Behind, ...] = ()
    run: int | None = None
    seconds: float = 0.0
    online: Mapping[str, str] = field(default_factory=dict)
    planned: Plan | None = None

    @property
    def complete(self) -> bool:
        """Whether every shard that was asked for is at the target."""
        return all(one.why is Why.LEFT_OUT for one in self.behind)


class Run:
    """One run over the fleet: what is known, what is held, what is done."""

    def __init__(
        self,
        settings: Settings,
        catalog: Any,
        shared: Shared,
        direction: Direction,
        progress: Progress,
    ) -> None:
        self._settings, self._catalog, self._shared, self._progress = settings, catalog, shared, progress
        self.ledger: Ledger | None = None
        self.tree: Tree
        self.ways: Callable[[Version], tuple[Step, ...] | None]
        self._direction: Direction = direction
        self._lanes: dict[str, list[Lane]] = {}
        self._threads: dict[Lane, ThreadPoolExecutor] = {}
        self._map: ShardMap = load_map(catalog)
        self._servers: dict[int, str] = {}
        self._failed: dict[int, Behind] = {}
        self._done: set[int] = set()
        self._total = 0
        self._homes: tuple[ShardMap, dict[int, int]] | None = None
        self._asked = self._ask(list(self._map.placements))

    def look(self) -> Plan:
        """What is to be done, from what the shards say."""
        if not self._asked:
            return Plan((), {}, (), 0)
        found = self.find()
        known = read_ledger(self._catalog)
        if self.ledger is not None:
            self.ledger.settle(settled(found, known, self.tree.applied))
        seen = plan(found, self.ways, self._shared.options, known)
        missing = {step.revision: step for steps in seen.steps.values() for step in steps}
        if self._direction == "down":
            for revision in missing:
                self.tree.check_downgrade(revision)
        new = [step for step in missing.values() if step.revision not in self._shared.rendered]
        if new:
            self._shared.rendered |= render(self.tree, new, self._direction)
        return seen

    def online(self) -> dict[str, str]:
        """Revisions that Alembic runs itself, and why."""
        return {name: one.online for name, one in self._shared.rendered.items() if one.online}

    def _ask(self, shards: Sequence[int]) -> list[tuple[Lane, list[int], Future[dict[str, Version]]]]:
        """Let each lane read the versions of its shards."""
        return [
            (lane, mine, self._threads[lane].submit(lane.read, [schema_of(self._map, s) for s in mine]))
            for lane, mine in self._by_lane(self._map, sorted(shards))
        ]

    def find(self) -> list[Found]:
        """Each shard's version as the lanes read it, or why it cannot be read."""
        moving = moving_shards(self._catalog, [shard for _, shards, _ in self._asked for shard in shards])
        return [one for lane, shards, answer in self._asked for one in self._found(self._map, lane, shards, answer, moving)]

    @staticmethod
    def _found(
        shard_map: ShardMap, lane: Lane, shards: Sequence[int], answer: Future[dict[str, Version]], moving: set[int]
    ) -> Iterator[Found]:
        try:
            versions = answer.result()
        except ServerDownError as exc:
            yield from (Found(shard, lane.server, None, Why.DOWN, str(exc)) for shard in shards)
            return
        for shard in shards:
            schema = schema_of(shard_map, shard)
            if schema in versions:
                yield Found(shard, lane.server, versions[schema], Why.MOVING if shard in moving else None)
            else:
                yield Found(shard, lane.server, None, Why.MISSING, f"server {lane.server!r} has no schema {schema}")

    def all(self, first: Plan) -> Report:
        """Wave after wave, until nobody is left who can be worked on; shards made or moved meanwhile are seen in the end."""
        seen = first
        while True:
            self._total = len(self._done) + len(self._failed) + len(seen.steps)
            self._pending(seen)
            before = len(self._done) + len(self._failed)
            for number, wave in enumerate(seen.waves):
                if self._shared.stop.is_set():
                    break
                self._wave(wave, seen, canary=number == 0 and seen is first and self._shared.options.canary > 0)
            self._map = newest_map(self._catalog, self._map)
            over = self._done | self._failed.keys()
            self._asked = self._ask([shard for shard in self._map.placements if shard not in over])
            seen = self.look()
            if self._shared.stop.is_set() or not seen.steps or before == len(self._done) + len(self._failed):
                break
        left = [*seen.behind, *self._failed.values()]
        named = {one.shard for one in left}
        left += [
            Behind(
                shard, self._map.placement(shard).server, steps[0].before, len(steps), Why.WAITING, "the run stopped before it"
            )
            for shard, steps in seen.steps.items()
            if shard not in named
        ]
        behind = tuple(sorted(left, key=lambda one: one.shard))
        current = seen.current + len(self._done)
        return Report(None, self._direction, current, tuple(sorted(self._done - {b.shard for b in behind})), behind)

    def _pending(self, seen: Plan) -> None:
        """Write down who has to wait for the waves before; the first ones are marked as they begin."""
        assert self.ledger is not None
        waiting = [shard for wave in seen.waves[2:] for shard in wave]
        self.ledger.mark(State.PENDING, [(shard, step.revision) for shard in waiting for step in seen.steps[shard]])

    def _wave(self, wave: Sequence[int], seen: Plan, *, canary: bool) -> None:
        """Work on the shards of a wave that no move holds, where they are now."""
        with self._held(wave) as (shard_map, held):
            for shard in set(wave) - held:
                why = "a move holds it; it is migrated when the move is over: run this again then"
                self._fail(Behind(shard, shard_map.placement(shard).server, None, len(seen.steps[shard]), Why.MOVING, why))
            assert self.ledger is not None
            self.ledger.mark(State.RUNNING, [(s, step.revision) for s in wave if s in held for step in seen.steps[s]])
            running = []
            for lane, shards in self._by_lane(shard_map, [shard for shard in wave if shard in held]):
                jobs: dict[tuple[Step, ...], list[Target]] = {}
                for shard in shards:
                    jobs.setdefault(seen.steps[shard], []).append(Target(shard, schema_of(shard_map, shard)))
                running.append(self._threads[lane].submit(lane.work, jobs))
            self._listen(running, seen, canary=canary)

    @contextmanager
    def _held(self, wave: Sequence[int]) -> Iterator[tuple[ShardMap, set[int]]]:
        """Hold the shards, and only then look where they are: a move may have ended in between."""
        held = hold_shards(self._catalog, wave)
        try:
            self._map = newest_map(self._catalog, self._map)
            yield self._map, held - moving_shards(self._catalog, wave)
        finally:
            let_go(self._catalog, held)

    def _listen(self, running: Sequence[Future[None]], seen: Plan, *, canary: bool) -> None:
        """Write down what the lanes tell, until they are all at rest."""
        assert self.ledger is not None
        resting = 0
        while resting < len(running):
            news = list(self._news(len(running) - resting))
            resting += news.count(None)
            told = [one for one in news if one is not None]
            self.ledger.mark(State.DONE, [(n.shard, n.revision) for n in told if n.trouble is None])
            for one in told:
                if one.trouble is not None:
                    self.ledger.mark(State.FAILED, [(one.shard, one.revision)], one.trouble.text)
                    why = Why.DOWN if one.trouble.down else Why.LOCKED if one.trouble.locked else Why.FAILED
                    self._fail(self._behind(one, seen, why))
                elif one.revision == seen.steps[one.shard][-1].revision:
                    self._done.add(one.shard)
            failures = sum(one.why in (Why.FAILED, Why.LOCKED) for one in self._failed.values())
            if must_stop(failures=failures, canary=canary, max_failures=self._shared.options.max_failures):
                self._shared.stop.set()
            self._progress(len(self._done), self._total, len(self._failed))
        for lane in running:
            lane.result()

    def _news(self, lanes: int) -> Iterator[News | None]:
        """All there is to hear for a while, or until the *lanes* still at work are at rest."""
        until = time.monotonic() + LEDGER_EVERY_S
        while lanes and (left := until - time.monotonic()) > 0:
            try:
                news = self._shared.news.get(timeout=left)
            except queue.Empty:
                return
            lanes -= news is None
            yield news

    def _behind(self, news: News, seen: Plan, why: Why) -> Behind:
        steps = seen.steps[news.shard]
        at = next(n for n, step in enumerate(steps) if step.revision == news.revision)
        detail = f"revision {news.revision}: {news.trouble.text if news.trouble else ''}"
        return Behind(news.shard, self._servers[news.shard], steps[at].before, len(steps) - at, why, detail)

    def _fail(self, behind: Behind) -> None:
        self._failed[behind.shard] = behind

    def _by_lane(self, shard_map: ShardMap, shards: Sequence[int]) -> Iterator[tuple[Lane, list[int]]]:
        """The shards of each lane: always the same lane for the same shard of a server."""
        work: dict[Lane, list[int]] = {}
        for shard in shards:
            name = shard_map.placement(shard).server
            self._servers[shard] = name
            work.setdefault(self._lane(shard_map, name, shard), []).append(shard)
        yield from work.items()

    def _lane(self, shard_map: ShardMap, name: str, shard: int) -> Lane:
        if name not in self._lanes:
            url = server_url(shard_map.server(name), self._settings)
            self._lanes[name] = [Lane(self._shared, name, url) for _ in range(self._shared.options.parallel)]
            self._threads |= {lane: ThreadPoolExecutor(1) for lane in self._lanes[name]}
        return self._lanes[name][self._order(shard_map)[shard] % self._shared.options.parallel]

    def _order(self, shard_map: ShardMap) -> dict[int, int]:
        """Each shard's number among those of its server."""
        if self._homes is None or self._homes[0] is not shard_map:
            counts: dict[str, int] = {}
            order = {}
            for shard, place in sorted(shard_map.placements.items()):
                order[shard] = counts[place.server] = counts.get(place.server, -1) + 1
            self._homes = shard_map, order
        return self._homes[1]

    def close(self) -> None:
        """End every lane, at once if something went wrong."""
        self._shared.stop.set()
        for lane, thread in self._threads.items():
            thread.shutdown()
            lane.close()


def schema_of(shard_map: ShardMap, shard: int) -> str:
    """The schema of a shard by the map."""
    return schema_name(shard, shard_map.placement(shard).epoch)
