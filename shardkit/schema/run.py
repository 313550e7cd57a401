"""One run over the fleet: what is known, what is held, what is done; the lanes work, this waits and writes down.

The shards' own version rows say what is left to do, the shard locks keep moves away meanwhile, the ledger tells the story.
"""

from __future__ import annotations

import logging
import queue
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import Any, Final

from shardkit.catalog.ledger import Ledger, OpenMove, hold_shards, let_go, moving_shards, read_ledger
from shardkit.catalog.rows import load_map, newest_map
from shardkit.core.fleet import Behind, Found, Plan, State, Step, Version, Why, connections, must_stop, plan, settled
from shardkit.core.names import schema_name
from shardkit.core.shardmap import ShardMap
from shardkit.db.steps import DriverError, Target, trouble
from shardkit.errors import ServerDownError, ShardKitError
from shardkit.schema.lanes import Lane, Lanes, News, Shared
from shardkit.schema.render import render
from shardkit.schema.tree import Direction, Tree

log = logging.getLogger("shardkit.migrations")
LEDGER_EVERY_S: Final = 0.2
MOVES_EVERY_S: Final = 0.2
Progress = Callable[[int, int, int], None]
"""Hears how many shards are done, of how many, and how many failed."""

FinishSoak = Callable[[int], object]
"""Ends the soak of the move with this number: its old copy is dropped."""


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
    mended: tuple[int, ...] = ()
    """Shards that got tables of shardkit's own which they lacked."""

    @property
    def complete(self) -> bool:
        """Whether every shard that was asked for is at the target."""
        return all(one.why is Why.LEFT_OUT for one in self.behind)


@dataclass(slots=True)
class _Wave:
    """Shards that are worked on together: those held against moves, and the lanes at work or at rest."""

    number: int
    held: set[int]
    canary: bool
    running: list[Future[None]] = field(default_factory=list)
    resting: int = 0

    @property
    def over(self) -> bool:
        """Whether all lanes are at rest."""
        return self.resting == len(self.running)


class Run:
    """One run over the fleet: what is known, what is held, what is done."""

    def __init__(
        self,
        catalog: Any,
        shared: Shared,
        direction: Direction,
        progress: Progress,
    ) -> None:
        self._shared, self._progress = shared, progress
        self.ledger: Ledger | None = None
        self.catalog = catalog
        self.tree: Tree
        self.ways: Callable[[Version], tuple[Step, ...] | None]
        self._direction: Direction = direction
        self._lanes = Lanes(shared)
        self._map: ShardMap = load_map(catalog)
        self._failed: dict[int, Behind] = {}
        self._done: set[int] = set()
        self._kept: dict[int, Behind] = {}
        self._waves = self._total = 0
        self._asked = self._ask(list(self._map.placements))
        self._lacking = self._ask_lacking()

    def look(self) -> Plan:
        """What is to be done, from what the shards say."""
        if not self._asked:
            return Plan((), {}, (), 0)
        found = self.find()
        known = read_ledger(self.catalog)
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
            (lane, mine, lane.thread.submit(lane.read, [schema_of(self._map, s) for s in mine]))
            for lane, mine in self._lanes.spread(self._map, sorted(shards))
        ]

    def _ask_lacking(self) -> list[Future[dict[str, tuple[str, ...]]]]:
        """Let one lane of each server look for tables of ours that are missing."""
        asked = []
        for name in self._map.servers:
            if shards := self._map.shards_on(name):
                lane = self._lanes.lane(self._map, name, 0)
                asked.append(lane.thread.submit(lane.lacking, [schema_of(self._map, shard) for shard in shards]))
        return asked

    def lacking(self) -> dict[int, tuple[str, ...]]:
        """Our own tables that the chosen shards lack: they were made by an older release."""
        found = {schema: tables for answer in self._lacking for schema, tables in answer.result().items()}
        shards = {schema_of(self._map, shard): shard for shard in self._map.placements} if found else {}
        lacking = {shards[schema]: tables for schema, tables in found.items()}
        return {shard: tables for shard, tables in lacking.items() if self._shared.options.takes(shard)}

    @property
    def shards(self) -> Collection[int]:
        """All shards of the map."""
        return self._map.placements.keys()

    def server_of(self, shard: int) -> str:
        """Where a shard is by the map."""
        return self._map.placement(shard).server

    def mend(self) -> dict[int, str]:
        """Make the tables of ours that shards lack; gives why not, for those where it could not be done, else ""."""
        lacking = self.lacking()
        if not lacking:
            return {}
        held = hold_shards(self.catalog, sorted(lacking))
        told = {}
        try:
            self._map = newest_map(self.catalog, self._map)
            moving = moving_shards(self.catalog, sorted(lacking))
            for lane, shards in self._lanes.spread(self._map, sorted(lacking)):
                for shard in shards:
                    if shard in moving or shard not in held:
                        told[shard] = moving[shard].text if shard in moving else "a move holds it"
                    else:
                        job = lane.thread.submit(lane.mend, schema_of(self._map, shard), lacking[shard])
                        told[shard] = job.result()
        finally:
            let_go(self.catalog, held)
        return told

    def find(self) -> list[Found]:
        """Each shard's version as the lanes read it, or why it cannot be read."""
        moving = moving_shards(self.catalog, [shard for _, shards, _ in self._asked for shard in shards])
        return [one for lane, shards, answer in self._asked for one in self._found(self._map, lane, shards, answer, moving)]

    @staticmethod
    def _found(
        shard_map: ShardMap,
        lane: Lane,
        shards: Sequence[int],
        answer: Future[dict[str, Version]],
        moving: Mapping[int, OpenMove],
    ) -> Iterator[Found]:
        try:
            versions = answer.result()
        except ServerDownError as exc:
            yield from (Found(shard, lane.server, None, Why.DOWN, str(exc)) for shard in shards)
            return
        except DriverError as exc:  # it answers, but does not tell: the others go on
            detail = f"server {lane.server!r} refused to tell its version: {trouble(exc).text}"
            yield from (Found(shard, lane.server, None, Why.FAILED, detail) for shard in shards)
            return
        for shard in shards:
            schema = schema_of(shard_map, shard)
            if schema in versions:
                move = moving.get(shard)
                yield Found(shard, lane.server, versions[schema], Why.MOVING if move else None, move.text if move else "")
            else:
                yield Found(shard, lane.server, None, Why.MISSING, f"server {lane.server!r} has no schema {schema}")

    def all(self, first: Plan, *, finish_soak: FinishSoak | None = None) -> Report:
        """Wave after wave, until nobody is left who can be worked on; shards made or moved meanwhile are seen in the end."""
        seen, give_up = first, 0.0
        while True:
            self._total = len(self._done) + len(self._failed) + len(seen.steps)
            before = len(self._done) + len(self._failed)
            self._kept.clear()
            self._work(seen)
            seen = self._look_again()
            if self._shared.stop.is_set():
                break
            if seen.steps and before < len(self._done) + len(self._failed):
                continue
            moving = self._kept.keys() | {one.shard for one in seen.behind if one.why is Why.MOVING}
            give_up = give_up or time.monotonic() + self._shared.options.moves_wait_s
            if not moving or not self._moves_over(moving, give_up, finish_soak):
                break
            seen = self._look_again()
        left = [*seen.behind, *self._failed.values(), *(self._kept[shard] for shard in seen.steps if shard in self._kept)]
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

    def _look_again(self) -> Plan:
        """What is to be done with the shards that nothing has become of yet."""
        self._map = newest_map(self.catalog, self._map)
        over = self._done | self._failed.keys()
        self._asked = self._ask([shard for shard in self._map.placements if shard not in over])
        return self.look()

    def _moves_over(self, shards: AbstractSet[int], give_up: float, finish_soak: FinishSoak | None) -> bool:
        """Whether, in time, a shard of *shards* is free of moves. A soak ends only if it is ended."""
        while not self._shared.stop.wait(max(0.0, min(MOVES_EVERY_S, give_up - time.monotonic()))):
            finished = False
            for move in set(moving_shards(self.catalog, list(shards)).values()):
                if move.soaks and finish_soak is not None:
                    finished |= _finished(move, finish_soak)
            moving = moving_shards(self.catalog, list(shards))
            in_time = time.monotonic() < give_up
            if shards - moving.keys() and (finished or in_time):
                return True
            if not in_time or all(move.soaks for move in moving.values()):
                return False
        return False

    def _pending(self, seen: Plan, waves: Iterable[Sequence[int]]) -> None:
        """Write down who has to wait for the waves before."""
        assert self.ledger is not None
        self.ledger.mark(
            State.PENDING, [(shard, step.revision) for wave in waves for shard in wave for step in seen.steps[shard]]
        )

    def _work(self, seen: Plan) -> None:
        """Wave after wave: one begins when the first lane of the one before is at rest; nothing begins beside canaries."""
        waiting, under_way, canaries = deque(seen.waves), deque[_Wave](), self._shared.options.canary
        told = False
        try:
            while under_way or (waiting and not self._shared.stop.is_set()):
                if waiting and not self._shared.stop.is_set() and all(w.resting and not w.canary for w in under_way):
                    shards = waiting.popleft()
                    if canary := canaries > 0 and not self._done:  # those before were moved away, or their server went
                        waiting.extendleft([shards[canaries:]] if shards[canaries:] else [])
                    under_way.append(self._begin(shards[:canaries] if canary else shards, seen, canary=canary))
                    if canary and not told:
                        self._pending(seen, list(waiting)[1:])
                        told = True
                else:
                    self._listen(under_way, seen)
                while under_way and under_way[0].over:
                    self._end(under_way.popleft())
        finally:
            for wave in under_way:  # something went wrong: the lanes end with what they are at, and only then moves may come
                self._shared.stop.set()
                wait(wave.running)
                let_go(self.catalog, wave.held)

    def _begin(self, shards: Sequence[int], seen: Plan, *, canary: bool) -> _Wave:
        """Hold the shards, and only then look where they are: a move may have ended in between. Those no move has are begun."""
        assert self.ledger is not None
        self._waves += 1
        wave = _Wave(self._waves, hold_shards(self.catalog, shards), canary=canary)
        self._map = newest_map(self.catalog, self._map)
        moving = moving_shards(self.catalog, shards)
        free = [shard for shard in shards if shard in wave.held and shard not in moving]
        for shard in set(shards).difference(free):
            steps, place = seen.steps[shard], self._map.placement(shard)
            why = moving[shard].text if shard in moving else "a move holds it"
            self._kept[shard] = Behind(shard, place.server, steps[0].before, len(steps), Why.MOVING, why)
        self.ledger.mark(State.RUNNING, [(shard, step.revision) for shard in free for step in seen.steps[shard]])
        if not canary:
            self._lanes.width = connections(slowest_ms=self._slowest_ms(seen, free), options=self._shared.options)
        for lane, mine in self._lanes.spread(self._map, free):
            jobs: dict[tuple[Step, ...], list[Target]] = {}
            for shard in mine:
                jobs.setdefault(seen.steps[shard], []).append(Target(shard, schema_of(self._map, shard)))
            wave.running.append(lane.thread.submit(lane.work, jobs, wave.number))
        return wave

    def _end(self, wave: _Wave) -> None:
        let_go(self.catalog, wave.held)
        for lane in wave.running:
            lane.result()

    def _listen(self, under_way: Iterable[_Wave], seen: Plan) -> None:
        """Write down what the lanes tell: all there is to hear for a while, or until a wave ends or the next may begin, which
        is when its first lane rests: what is told by then is written while the others work.
        """
        assert self.ledger is not None
        told: list[News] = []
        until = time.monotonic() + LEDGER_EVERY_S
        while (left := until - time.monotonic()) > 0:
            try:
                news = self._shared.news.get(timeout=left)
            except queue.Empty:
                break
            if isinstance(news, News):
                told.append(news)
                continue
            wave = next(w for w in under_way if w.number == news)
            wave.resting += 1
            if wave.over or wave.resting == 1:
                break
        self.ledger.mark(State.DONE, [(n.shard, n.revision) for n in told if n.trouble is None])
        for one in told:
            if one.trouble is not None:
                self.ledger.mark(State.FAILED, [(one.shard, one.revision)], one.trouble.text)
                why = Why.DOWN if one.trouble.down else Why.LOCKED if one.trouble.locked else Why.FAILED
                self._failed[one.shard] = self._behind(one, seen, why)
            elif one.revision == seen.steps[one.shard][-1].revision:
                self._done.add(one.shard)
        failures = sum(one.why in (Why.FAILED, Why.LOCKED) for one in self._failed.values())
        canary = any(wave.canary for wave in under_way)
        if must_stop(failures=failures, canary=canary, max_failures=self._shared.options.max_failures):
            self._shared.stop.set()
        self._progress(len(self._done), self._total, len(self._failed))

    def _behind(self, news: News, seen: Plan, why: Why) -> Behind:
        steps = seen.steps[news.shard]
        at = next(n for n, step in enumerate(steps) if step.revision == news.revision)
        detail = f"revision {news.revision}: {news.trouble.text if news.trouble else ''}"
        return Behind(news.shard, self._lanes.servers[news.shard], steps[at].before, len(steps) - at, why, detail)

    def _slowest_ms(self, seen: Plan, shards: Iterable[int]) -> float | None:
        """Of the revisions that *shards* need, the longest time one took; None if one has not been timed yet."""
        needed = {step.revision for steps in {seen.steps[shard] for shard in shards} for step in steps}
        times = [self._shared.slowest_ms.get(revision) for revision in needed]
        return None if None in times else max(filter(None, times), default=None)

    def close(self) -> None:
        """End every lane, at once if something went wrong."""
        self._shared.stop.set()
        self._lanes.close()


def _finished(move: OpenMove, finish_soak: FinishSoak) -> bool:
    try:
        finish_soak(move.id)
    except ShardKitError as exc:
        log.warning("the soak of move %s could not be ended, so its shard stays behind: %s", move.id, exc)
        return False
    return True


def schema_of(shard_map: ShardMap, shard: int) -> str:
    """The schema of a shard by the map."""
    return schema_name(shard, shard_map.placement(shard).epoch)
