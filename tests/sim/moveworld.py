"""Two model servers, a catalog, clients and streams: everything ``shardkit.core.moving`` acts on, small enough to run a
hundred thousand times.

The model has no verification: what protects the rows here is the order of the effects alone.
"""

from __future__ import annotations

from functools import partial

from shardkit.core.moving import Step
from tests.sim import lives
from tests.sim.lives import Place, Violation

CLIENTS = 3
WRITES = 3
MARGIN = CLIENTS + 1  # each client can be about to draw one id


class Lane:
    """A stream from one server to the other: what was committed at its source since ``slot``, applied in order."""

    __slots__ = ("applied", "log", "slot", "source", "sub", "target")

    def __init__(self, source, target):
        self.source, self.target = source, target
        self.log, self.applied, self.slot, self.sub = [], 0, False, False

    def drop(self):
        self.slot = self.sub = False
        self.log, self.applied = [], 0


class World(lives.World):
    def __init__(self, rng, bug):
        super().__init__(rng, bug)
        self.places[("a", 1)] = Place()
        self.catalog = ("a", 1)
        self.newest = 1  # epoch of the newest commit
        self.acked = []
        self.lanes = {"a": Lane("a", "b"), "b": Lane("b", "a")}
        self.ends = ("a", 1), ("b", 1)

    def actors(self):
        return [self.client() for _ in range(CLIENTS)]

    def mover(self):
        return Run(self, *self.ends)

    def turn_back(self):
        (source, epoch), (target, _) = self.ends
        self.ends = (target, epoch + 1), (source, epoch + 1)

    def commit(self, at, place, key):
        server, epoch = at
        if epoch < self.newest:
            raise Violation(f"a commit at epoch {epoch} after one at {self.newest}")
        self.newest = epoch
        if key in place.rows:
            raise Violation(f"id {key} was given twice")
        place.rows[key] = 1
        lane = self.lanes[server]
        if lane.slot:
            lane.log.append(key)

    def client(self):
        at, kept, rng = self.catalog, None, self.rng
        for _ in range(WRITES):
            while True:
                place = self.places.get(at)
                if place is None:
                    at = self.catalog
                    yield
                    continue
                if kept is None:
                    yield  # it has found its sequence, and the shard may move before it draws
                    place.seq += 1
                    kept = place.seq
                    yield
                while place.locked is not None:
                    yield
                if self.places.get(at) is not place or place.guard:  # the fence: refresh, and again, with the id it has
                    at = self.catalog
                    yield
                    continue
                place.open += 1
                yield
                place.open -= 1
                if rng.random() < 0.02:
                    return  # died before COMMIT
                self.commit(at, place, kept)
                yield
                self.acked.append(kept)
                kept = None
                break

    def flow(self):
        """Each stream applies one change, if there is one."""
        for lane in self.lanes.values():
            if lane.sub and lane.applied < len(lane.log):
                change = lane.log[lane.applied]
                if change > 0:
                    place = next((p for (server, _), p in self.places.items() if server == lane.target), None)
                    if place is None:
                        continue
                    if change in place.rows:
                        raise Violation(f"change {change} was applied twice")
                    place.rows[change] = 1
                lane.applied += 1

    def judge(self):
        """The invariants at the end of a life."""
        if set(self.places) != {self.catalog}:
            raise Violation(f"places {sorted(self.places)}, but the catalog says {self.catalog}")
        place = self.places[self.catalog]
        if place.guard or place.locked:
            raise Violation("the one place is closed")
        if lost := [key for key in self.acked if key not in place.rows]:
            raise Violation(f"acknowledged writes {lost} are lost")
        if self.objects or any(lane.slot or lane.sub for lane in self.lanes.values()):
            raise Violation(f"left behind: {self.objects}")
        return self.step, self.catalog


class Run(lives.Mover):
    """Carries the one shard, as a copy and a stream, from one server to the other."""

    def __init__(self, world, source_at, target_at):
        super().__init__(world, source_at, target_at)
        self.lane, self.back = world.lanes[source_at[0]], world.lanes[target_at[0]]

    def clean(self, _):
        for what, key in self.w.objects:
            if what == "schema":
                self.w.places.pop(key, None)
            else:
                self.w.lanes[key].drop()
        self.w.objects.clear()

    def copy(self, _):
        w, lane = self.w, self.lane
        w.objects |= {("lane", self.source_at[0]), ("schema", self.target_at)}
        source = w.places[self.source_at]
        target = w.places.setdefault(self.target_at, Place())
        if not lane.slot:
            lane.slot, lane.log, lane.applied = True, [], 0
        for key in source.rows:
            if key in target.rows:
                raise Violation(f"row {key} was copied on top of itself")
            target.rows[key] = 1

    def arm(self, _):
        self.w.objects.add(("lane", self.target_at[0]))
        self.back.slot = True

    def subscribe(self, _):
        self.lane.sub = True

    def catch_up(self, _):
        if self.lane.applied < len(self.lane.log) - 1:
            return NotImplemented
        self.w.objects.add(("schema", self.after))
        return None

    def mark(self, _):
        self.lane.log.append(0)
        self.marked = len(self.lane.log)

    @property
    def heard(self):
        return self.lane.applied

    def carry_sequences(self, effect):
        source, target = self.w.places.get(self.after), self.w.places.get(self.target_at)
        if source is not None and target is not None:
            target.seq = max(target.seq, source.seq + min(effect.margin, MARGIN))

    def close(self, place):
        place.guard = True

    def open(self, _):
        if self.target_at in self.w.places:
            self.w.rename(self.target_at, self.opened).guard = False

    def flip(self, _):
        if self.w.catalog == self.source_at:
            self.w.catalog = self.opened
        elif self.w.catalog != self.opened:
            raise Violation("compare-and-set failed")
        self.w.step = Step.FOLLOW

    def follow(self, _):
        self.lane.drop()
        self.back.sub = True


simulate = partial(lives.live, World)
