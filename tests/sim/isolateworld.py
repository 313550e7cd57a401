"""Two model shards of which one is carved out of the other: the script of a move acts on them, and a seed decides what is hit.

Shard ``S`` has rows of tenants x and y; x is carried into ``N``, perhaps back, perhaps again. As on real servers, a stream only
names what changed, and the row is copied as it is then; what is left in a shard is hidden by a curtain and removed at the end.
"""

from __future__ import annotations

import random

from shardkit.core import moving as m
from shardkit.core.moving import Busy, PastNoReturn, Step
from tests.sim.moveworld import Dead, Violation, turns

WRITES = 4
MAX_TURNS = 6000


class Place:
    """A shard at one epoch. ``rows``: key → (tenant, value)."""

    __slots__ = ("guard", "hidden", "locked", "open", "rows", "seq")

    def __init__(self):
        self.rows, self.seq, self.guard, self.locked, self.open, self.hidden = {}, 0, False, None, 0, False

    def seen(self):
        """What an operator sees."""
        return {key: value for key, (tenant, value) in self.rows.items() if not (self.hidden and tenant == "x")}


class World:
    def __init__(self, rng):
        self.rng = rng
        self.places = {("S", 1): Place()}
        self.epochs, self.pin = {"S": 1}, "S"  # the catalog
        self.version = 0  # of the pins
        self.age, self.ages, self.latest = 1, {("S", 1): 1}, {"x": 0, "y": 0}
        self.acked = {}
        self.streams = []
        self.lease, self.fence, self.objects, self.step = 0, None, set(), Step.PLANNED

    def at(self, tenant):
        shard = self.pin if tenant == "x" else "S"
        return shard, self.epochs[shard]

    def rename(self, old, new):
        place = self.places[new] = self.places.pop(old)
        self.age += 1
        self.ages[new] = self.age
        return place

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


class Run:
    """One mover process: does the effects of a script on the world."""

    def __init__(self, world, *, returning=False, bug=""):
        self.w, self.returning, self.bug = world, returning, bug
        source, target = ("N", "S") if returning else ("S", "N")
        self.source_at = (source, world.epochs[source])
        self.target_at = (target, world.epochs["S"]) if returning else ("N", world.new_epoch)
        world.lease += 1
        self.lease = world.lease
        self.queue, self.dirty, self.heard, self.mark, self.verified = [], set(), 0, 0, 0

    def resume_at(self, source_at, target_at):
        self.source_at, self.target_at = source_at, target_at
        return self

    def do(self, effect):
        """The effect's result; NotImplemented: wait, ask again."""
        if type(effect) is not m.Expel and self.lease != self.w.lease:
            raise Dead
        return HANDLERS[type(effect)](self, effect)

    def release(self):
        if self.w.fence is not None:
            self.w.fence[1].locked = None
            self.w.fence = None

    def detach(self):
        if self in self.w.streams:
            self.w.streams.remove(self)
        self.queue, self.dirty, self.heard, self.verified = [], set(), 0, 0

    @property
    def after(self):
        return self.source_at[0], self.source_at[1] + 1

    @property
    def opened(self):
        return self.target_at[0], self.target_at[1] + 1

    def expel(self, _):
        if self.lease < self.w.lease:
            raise Dead
        for stream in list(self.w.streams):
            stream.detach()
        self.release()

    def enter(self, effect):
        self.w.step = effect.step

    def nothing(self, _):
        return None

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

    def ask_fence(self, _):
        return self.after in self.w.places

    def lock(self, _):
        if self.verified < 2:  # contact was lost meanwhile
            self.verify(None)
            return NotImplemented
        place = self.w.places[self.source_at]
        if place.open:
            if self.w.rng.random() < 0.3:
                raise Busy
            return NotImplemented
        place.locked = self.lease
        self.w.fence = (self.lease, place)
        return None

    def write_mark(self, _):
        self.mark = self.heard + len(self.queue)

    def await_mark(self, _):
        if self.heard >= self.mark:
            return None
        if self.w.rng.random() < 0.03:
            raise Busy
        return NotImplemented

    def verify_changed(self, _):
        self.mend(self.dirty)
        self.dirty = set()

    def commit_fence(self, _):
        w = self.w
        if w.fence is None and self.bug != "no lock":
            raise Busy  # the server had ended the transaction
        place = w.rename(self.source_at, self.after)
        place.hidden = self.bug != "the curtain is not drawn"
        place.guard = False
        self.release()

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

    def unlock(self, _):
        self.release()


HANDLERS = {
    m.Enter: Run.enter, m.Expel: Run.expel, m.Check: Run.nothing, m.Clean: Run.clean, m.Publish: Run.nothing,
    m.Copy: Run.copy, m.Complete: Run.nothing, m.Arm: Run.arm, m.Subscribe: Run.nothing, m.CatchUp: Run.catch_up,
    m.Verify: Run.verify, m.AskFence: Run.ask_fence, m.Lock: Run.lock, m.Mark: Run.write_mark,
    m.AwaitMark: Run.await_mark, m.VerifyChanged: Run.verify_changed, m.CarrySequences: Run.nothing,
    m.CommitFence: Run.commit_fence, m.Unlock: Run.unlock, m.LetThrough: Run.nothing, m.Open: Run.open,
    m.Flip: Run.flip, m.Follow: Run.nothing,
}  # fmt: skip


def simulate(seed, *, plant=lambda script, _run: script, bug="", fault=0.04):
    """One whole life: carried out, hit, gone on with, aborted or rolled back, and cleaned up. Raises Violation."""
    rng = random.Random(seed)
    w = World(rng)
    w.new_epoch = 1
    kind, returning, ends, runs = "carry", False, None, 0

    def begin():
        nonlocal runs, ends
        runs += 1
        run = Run(w, returning=returning, bug=bug)
        ends = ends or (run.source_at, run.target_at)
        run.resume_at(*ends)
        if kind == "finish":
            script = m.finish(w.step)
        elif kind == "abort" and w.step is not Step.FINISH:
            script = m.abort(w.step)
        else:
            script = m.resume(w.step, fence=m.FencePolicy(), copied=returning, soak=not returning)
        return turns(run, plant(script, run), rng, fault=fault if runs < 6 else 0)

    actors = [w.client("x"), w.client("x"), w.client("y"), w.counter(torn=bug == "a fan-out keeps its old answers")]
    movers = [begin()]
    for _ in range(MAX_TURNS):
        pick = rng.random()
        if movers and pick < 0.45:
            mover = movers[0] if len(movers) == 1 else rng.choice(movers)
            try:
                next(mover)
                if len(movers) == 1 and runs < 5 and rng.random() < 0.002:
                    movers.append(begin())  # a second operator takes over while the first only seemed dead
                continue
            except PastNoReturn:
                ended, kind = None, "carry"
            except StopIteration as end:
                ended = end.value
            movers.remove(mover)
            if ended is not None and ended is w.step:
                if w.step is Step.SOAK:
                    if rng.random() < 0.5:
                        kind, returning, ends, w.step = "carry", True, None, Step.PLANNED
                    else:
                        kind = "finish"
                elif w.step.ended:
                    movers.clear()
                    continue
            elif kind == "carry" and rng.random() < 0.25 and not returning:
                kind = "abort"
            elif kind == "abort" and rng.random() < 0.5 and w.step is not Step.ABORT:
                kind = "carry"
            if not movers:
                movers.append(begin())
        elif pick < 0.8 and actors:
            actor = rng.choice(actors)
            try:
                next(actor)
            except StopIteration:
                actors.remove(actor)
        else:
            w.flow()
        if not movers and not actors:
            return judge(w)
    raise Violation(f"no end in sight at step {w.step.word}, {len(actors)} actors waiting")


def judge(w):
    """The invariants at the end of a life."""
    live = set(w.epochs.items())
    if set(w.places) != live:
        raise Violation(f"places {sorted(w.places)}, but the catalog says {sorted(live)}")
    if any(place.guard or place.locked or place.hidden for place in w.places.values()):
        raise Violation("a place is closed, or hides something")
    for (shard, _), place in w.places.items():
        if any((w.pin if tenant == "x" else "S") != shard for tenant, _ in place.rows.values()):
            raise Violation(f"rows are left in shard {shard}")
    rows = {key: value for place in w.places.values() for key, (_, value) in place.rows.items()}
    if lost := [key for key, value in w.acked.items() if rows.get(key, 0) < value]:
        raise Violation(f"acknowledged writes {lost} are lost")
    if w.objects:
        raise Violation(f"left behind: {w.objects}")
    return w.step, w.pin, w.epochs["S"]
