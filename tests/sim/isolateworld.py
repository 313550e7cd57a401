"""Two model shards of which one is carved out of the other: the script of a move acts on them, and a seed decides what is hit.

Shard ``S`` has rows of tenants x and y; x is carried into ``N``, perhaps back, perhaps again. As on real servers, a stream only
names what changed, and the row is copied as it is then; what is left in a shard is hidden by a curtain and removed at the end.
"""

from __future__ import annotations

from functools import partial

from shardkit.core.moving import Step
from tests.sim import lives
from tests.sim.lives import Violation

WRITES = 4


class Place(lives.Place):
    """A shard at one epoch. ``rows``: key → (tenant, value)."""

    __slots__ = ("hidden",)

    def __init__(self):
        super().__init__()
        self.hidden = False

    def seen(self):
        """What an operator sees."""
        return {key: value for key, (tenant, value) in self.rows.items() if not (self.hidden and tenant == "x")}


class World(lives.World):
    movers_share = 0.45
    returns_share = 0.5
    max_turns = 6000

    def __init__(self, rng, bug):
        super().__init__(rng, bug)
        self.places[("S", 1)] = Place()
        self.epochs, self.pin = {"S": 1}, "S"  # the catalog
        self.version = 0  # of the pins
        self.age, self.ages, self.latest = 1, {("S", 1): 1}, {"x": 0, "y": 0}
        self.acked = {}
        self.streams = []
        self.ends = ("S", 1), ("N", 1)

    def actors(self):
        counter = self.counter(torn=self.bug == "a fan-out keeps its old answers")
        return [self.client("x"), self.client("x"), self.client("y"), counter]

    def mover(self):
        return Run(self, *self.ends)

    def turn_back(self):
        self.ends = tuple((shard, self.epochs[shard]) for shard in "NS")

    def at(self, tenant):
        shard = self.pin if tenant == "x" else "S"
        return shard, self.epochs[shard]

    def rename(self, old, new):
        self.age += 1
        self.ages[new] = self.age
        return super().rename(old, new)

    def commit(self, at, place, tenant, key, value):
        if place.hidden and tenant == "x":
            raise Violation("a write behind the curtain")
        if self.ages[at] < self.latest[tenant]:
            raise Violation(f"{tenant} wrote at {at} after a later place")
        self.latest[tenant] = self.ages[at]
        place.rows[key] = (tenant, value)
        for stream in self.streams:
            if stream.source_at == at:
                stream.queue.append(key)

    def client(self, tenant):
        at, rng, mine = self.at(tenant), self.rng, []
        for value in range(1, WRITES + 1):
            key = rng.choice(mine) if mine and rng.random() < 0.5 else None
            while True:
                place = self.places.get(at)
                if place is None or place.guard:
                    at = self.at(tenant)
                    yield
                    continue
                if place.locked is not None:
                    yield
                    continue
                if key is None:
                    place.seq += 1
                    key = (at[0], place.seq)
                    if key in place.rows:
                        raise Violation(f"id {key} was given twice")
                place.open += 1
                yield
                place.open -= 1
                if self.places.get(at) is not place:
                    at = self.at(tenant)  # its next statement found no such schema: not done
                    continue
                if rng.random() < 0.02:
                    return  # died before COMMIT
                self.commit(at, place, tenant, key, value)
                mine.append(key)
                yield
                self.acked[key] = value
                break

    def counter(self, *, torn=False):
        """A fan-out that asks one shard a turn, and begins again where tenants went from shard to shard."""
        for _ in range(2):
            known, promised, version, answers = dict(self.epochs), dict(self.acked), self.version, []
            todo = sorted(known)
            self.rng.shuffle(todo)
            while todo:
                place = self.places.get((todo[0], known[todo[0]]))
                yield
                if place is not None and not place.guard and self.places.get((todo[0], known[todo[0]])) is place:
                    answers.append(place.seen())
                    todo.pop(0)
                    continue
                if self.epochs[todo[0]] == known[todo[0]]:
                    continue  # the map does not say yet where it went
                if self.version != version and not torn:
                    known, promised, version, answers = dict(self.epochs), dict(self.acked), self.version, []
                    todo = sorted(known)
                else:
                    known[todo[0]] = self.epochs[todo[0]]
            counted = [key for answer in answers for key in answer]
            if len(set(counted)) != len(counted):
                raise Violation("a fan-out counted a row twice")
            if missing := promised.keys() - set(counted):
                raise Violation(f"a fan-out did not see {missing}")
            yield

    def flow(self):
        for stream in self.streams:
            if stream.queue:
                stream.dirty.add(stream.queue.pop(0))
                stream.heard += 1

    def judge(self):
        """The invariants at the end of a life."""
        live = set(self.epochs.items())
        if set(self.places) != live:
            raise Violation(f"places {sorted(self.places)}, but the catalog says {sorted(live)}")
        if any(place.guard or place.locked or place.hidden for place in self.places.values()):
            raise Violation("a place is closed, or hides something")
        for (shard, _), place in self.places.items():
            if any((self.pin if tenant == "x" else "S") != shard for tenant, _ in place.rows.values()):
                raise Violation(f"rows are left in shard {shard}")
        rows = {key: value for place in self.places.values() for key, (_, value) in place.rows.items()}
        if lost := [key for key, value in self.acked.items() if rows.get(key, 0) < value]:
            raise Violation(f"acknowledged writes {lost} are lost")
        if self.objects:
            raise Violation(f"left behind: {self.objects}")
        return self.step, self.pin, self.epochs["S"]


class Run(lives.Mover):
    """Carries tenant x out of its shard, or back."""

    def __init__(self, world, source_at, target_at):
        super().__init__(world, source_at, target_at)
        self.returning = source_at[0] == "N"
        self.queue, self.dirty, self.heard, self.verified = [], set(), 0, 0

    def detach(self):
        if self in self.w.streams:
            self.w.streams.remove(self)
        self.queue, self.dirty, self.heard, self.verified = [], set(), 0, 0

    def expel(self, effect):
        super().expel(effect)
        for stream in list(self.w.streams):
            stream.detach()

    def clean(self, _):
        w = self.w
        for what, key in sorted(w.objects, key=lambda found: ("schema", "rows", "curtain").index(found[0])):
            if what == "schema":
                if w.epochs.get(key[0]) != key[1]:
                    w.places.pop(key, None)
            elif what == "rows" and (w.pin != key[0] or self.bug == "rows are removed where the tenant has come back"):
                place = next((p for (shard, _), p in w.places.items() if shard == key[0]), None)
                if place is not None:
                    place.rows = {k: row for k, row in place.rows.items() if row[0] != "x"}
            elif what == "curtain":
                for (shard, _), place in w.places.items():
                    if shard == key:
                        place.hidden = False
        w.objects.clear()

    def copy(self, _):
        w = self.w
        w.objects.add(("schema", self.target_at))
        place = w.places.setdefault(self.target_at, Place())
        place.guard = True
        w.ages.setdefault(self.target_at, 0)
        for key, row in w.places[self.source_at].rows.items():
            if row[0] == "x":
                if key in place.rows:
                    raise Violation(f"row {key} was copied on top of itself")
                place.rows[key] = row

    def arm(self, _):
        self.w.objects.add(("curtain", self.source_at[0]))

    def catch_up(self, _):
        if self.returning:
            self.arm(None)

    def verify(self, effect):
        if effect is not None and self.verified == 2:
            self.detach()
        steps = [self.listen, self.compare]
        if self.bug == "changes are listened to only after the comparison":
            steps.reverse()
        steps[self.verified]()
        self.verified += 1
        return None if self.verified == 2 else NotImplemented

    def listen(self):
        self.w.streams.append(self)

    def compare(self):
        source, target = (self.w.places[at].rows for at in (self.source_at, self.target_at))
        self.mend({key for rows in (source, target) for key, row in rows.items() if row[0] == "x"})

    def mend(self, keys):
        source, target = (self.w.places[at].rows for at in (self.source_at, self.target_at))
        for key in keys:
            target.pop(key, None) if target.get(key, ("x",))[0] == "x" else None
            if source.get(key, ("y",))[0] == "x":
                target[key] = source[key]

    def lock(self, effect):
        if self.verified < 2:  # contact was lost meanwhile
            self.verify(None)
            return NotImplemented
        return super().lock(effect)

    def mark(self, _):
        self.marked = self.heard + len(self.queue)

    def verify_changed(self, _):
        self.mend(self.dirty)
        self.dirty = set()

    def close(self, place):
        place.hidden = self.bug != "the curtain is not drawn"
        place.guard = False

    def open(self, _):
        w = self.w
        if self.target_at in w.places and self.opened not in w.places:
            place = w.rename(self.target_at, self.opened)
            place.guard = place.hidden = False

    def flip(self, _):
        w = self.w
        if w.epochs[self.source_at[0]] == self.source_at[1]:
            w.epochs[self.source_at[0]], w.epochs[self.target_at[0]] = self.after[1], self.opened[1]
            w.pin = self.target_at[0]
            w.version += 1
            w.objects.add(("rows", self.after))
        elif w.epochs.get(self.target_at[0]) != self.opened[1]:
            raise Violation("compare-and-set failed")
        w.step = Step.FOLLOW


simulate = partial(lives.live, World)
