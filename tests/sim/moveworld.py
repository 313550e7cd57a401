"""Two model servers, a catalog, clients and streams: everything ``shardkit.core.moving`` acts on, small enough to run a
hundred thousand times. A seed decides who goes next, and where the mover is killed, hangs, or loses an answer.

The model has no verification: what protects the rows here is the order of the effects alone.
"""

from __future__ import annotations

import random

from shardkit.core import moving as m
from shardkit.core.moving import Busy, LostContact, PastNoReturn, Step

CLIENTS = 3
WRITES = 3
MARGIN = CLIENTS + 1  # each client can draw one id while writers are held
MAX_TURNS = 4000


class Violation(AssertionError):
    """An invariant does not hold."""


class Dead(Exception):
    """The session of this run was ended by a later run."""


class Place:
    """A schema on a server."""

    __slots__ = ("guard", "locked", "open", "rows", "seq")

    def __init__(self):
        self.rows, self.seq, self.guard, self.locked, self.open = {}, 0, False, None, 0


class Lane:
    """A stream from one server to the other: what was committed at its source since ``slot``, applied in order."""

    __slots__ = ("applied", "log", "slot", "source", "sub", "target")

    def __init__(self, source, target):
        self.source, self.target = source, target
        self.log, self.applied, self.slot, self.sub = [], 0, False, False


class World:
    def __init__(self, rng):
        self.rng = rng
        self.places = {("a", 1): Place()}
        self.catalog = ("a", 1)
        self.newest = 1  # epoch of the newest commit
        self.acked = []
        self.lanes = {"a": Lane("a", "b"), "b": Lane("b", "a")}
        self.published = set()
        self.lease = 0
        self.fence = None  # (lease, place) of the open fence transaction
        self.objects = set()
        self.step = Step.PLANNED

    # what a client does
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

    def flow(self, lane):
        """Apply one change, if there is one."""
        if lane.sub and lane.applied < len(lane.log):
            change = lane.log[lane.applied]
            if change > 0:
                place = next((p for (server, _), p in self.places.items() if server == lane.target), None)
                if place is None:
                    return
                if change in place.rows:
                    raise Violation(f"change {change} was applied twice")
                place.rows[change] = 1
            lane.applied += 1


class Run:
    """One mover process: does the effects of a script on the world."""

    def __init__(self, world, source, target, epoch, *, back=True):
        self.w, self.source, self.target, self.epoch = world, source, target, epoch
        self.lane, self.back = world.lanes[source], world.lanes[target] if back else None
        world.lease += 1
        self.lease = world.lease
        self.mark = 0

    def do(self, effect):
        """The effect's result; None for 'wait, ask again' is NotImplemented."""
        kind = type(effect)
        if kind is not m.Expel and self.lease != self.w.lease:
            raise Dead
        return HANDLERS[kind](self, effect)

    def expel(self, _):
        if self.lease < self.w.lease:
            raise Dead
        self.release()

    def release(self):
        if self.w.fence is not None:
            self.w.fence[1].locked = None
            self.w.fence = None

    def enter(self, effect):
        self.w.step = effect.step

    def nothing(self, _):
        return None

    def clean(self, _):
        w = self.w
        for what, key in w.objects:
            if what == "schema":
                place = w.places.get(key)
                if place is not None:
                    del w.places[key]
            else:
                lane = w.lanes[key]
                lane.slot = lane.sub = False
                lane.log, lane.applied = [], 0
        w.objects.clear()

    def copy(self, _):
        w = self.w
        w.objects |= {("lane", self.source), ("schema", (self.target, self.epoch))}
        source = w.places[self.source, self.epoch]
        target = w.places.setdefault((self.target, self.epoch), Place())
        lane = self.lane
        if not lane.slot:
            lane.slot, lane.log, lane.applied = True, [], 0
        for key in source.rows:
            if key in target.rows:
                raise Violation(f"row {key} was copied on top of itself")
            target.rows[key] = 1

    def arm(self, _):
        self.w.objects.add(("lane", self.target))
        self.back.slot = True

    def subscribe(self, _):
        self.lane.sub = True

    def catch_up(self, _):
        if self.lane.applied < len(self.lane.log) - 1:
            return NotImplemented
        self.w.objects.add(("schema", (self.source, self.epoch + 1)))
        return None

    def ask_fence(self, _):
        return (self.source, self.epoch + 1) in self.w.places

    def lock(self, _):
        place = self.w.places[self.source, self.epoch]
        if place.open:
            if self.w.rng.random() < 0.3:
                raise Busy
            return NotImplemented
        place.locked = self.lease
        self.w.fence = (self.lease, place)
        return None

    def write_mark(self, _):
        self.lane.log.append(0)
        self.mark = len(self.lane.log)

    def await_mark(self, _):
        if self.lane.applied >= self.mark:
            return None
        if self.w.rng.random() < 0.03:
            raise Busy
        return NotImplemented

    def carry_sequences(self, effect):
        source = self.w.places[self.source, self.epoch]
        self.w.places[self.target, self.epoch].seq = source.seq + min(effect.margin, MARGIN)

    def commit_fence(self, _):
        w = self.w
        if w.fence is None and not getattr(self, "no_lock", False):
            raise Busy  # the server had ended the transaction
        place = w.places.pop((self.source, self.epoch))
        w.places[self.source, self.epoch + 1] = place
        place.guard = True
        self.release()

    def unlock(self, _):
        self.release()

    def let_through(self, _):
        return None

    def open(self, _):
        places = self.w.places
        if (self.target, self.epoch) in places:
            place = places[self.target, self.epoch + 1] = places.pop((self.target, self.epoch))
            place.guard = False

    def flip(self, _):
        if self.w.catalog == (self.source, self.epoch):
            self.w.catalog = (self.target, self.epoch + 1)
        elif self.w.catalog != (self.target, self.epoch + 1):
            raise Violation("compare-and-set failed")
        self.w.step = Step.FOLLOW

    def follow(self, _):
        lane = self.lane
        lane.slot = lane.sub = False
        lane.log, lane.applied = [], 0
        self.back.sub = True


HANDLERS = {
    m.Enter: Run.enter, m.Expel: Run.expel, m.Check: Run.nothing, m.Clean: Run.clean, m.Publish: Run.nothing,
    m.Copy: Run.copy, m.Complete: Run.nothing, m.Arm: Run.arm, m.Subscribe: Run.subscribe, m.CatchUp: Run.catch_up,
    m.Verify: Run.nothing, m.AskFence: Run.ask_fence, m.Lock: Run.lock, m.Mark: Run.write_mark,
    m.AwaitMark: Run.await_mark, m.VerifyChanged: Run.nothing, m.CarrySequences: Run.carry_sequences,
    m.CommitFence: Run.commit_fence, m.Unlock: Run.unlock, m.LetThrough: Run.let_through, m.Open: Run.open,
    m.Flip: Run.flip, m.Follow: Run.follow,
}  # fmt: skip


def turns(run, script, rng, *, fault):
    """Do *script* one effect a turn. *fault* is the chance that an effect is hit: killed before or after it, its answer lost,
    an error, or a hang in which the server ends the fence's transaction. Returns the step it ended at, None if killed."""
    try:
        effect = next(script)
        while True:
            if fault and rng.random() < fault:
                hit = rng.randrange(5)
                if hit == 0:
                    return None  # killed before
                if hit == 1:
                    if run.do(effect) is not NotImplemented:
                        return None  # killed after
                elif hit == 2:  # done, but nobody heard of it
                    if run.do(effect) is not NotImplemented:
                        effect = script.throw(LostContact())
                        yield
                        continue
                elif hit == 3:
                    effect = script.throw(LostContact())
                    yield
                    continue
                else:  # hangs for a while; the server's time-out rolls an open fence back
                    for _ in range(rng.randrange(30)):
                        yield
                    if run.lease == run.w.lease:
                        run.release()
            try:
                result = run.do(effect)
            except (Busy, LostContact) as exc:
                effect = script.throw(exc)
                yield
                continue
            if result is not NotImplemented:
                effect = script.send(result)
            yield
    except StopIteration as end:
        return end.value
    except (Dead, LostContact, Busy):
        return None


def simulate(seed, *, plant=lambda script, _run: script, fault=0.04):
    """One whole life of a move: begun, hit, gone on with, aborted or rolled back, and cleaned up. Raises Violation."""
    rng = random.Random(seed)
    w = World(rng)
    policy = m.FencePolicy()
    kind, source, target, epoch, back = "carry", "a", "b", 1, True
    runs = 0

    def begin():
        nonlocal runs
        runs += 1
        run = Run(w, source, target, epoch, back=back)
        if kind == "finish":
            script = m.finish(w.step)
        elif kind == "abort" and w.step is not Step.FINISH:
            script = m.abort(w.step)
        else:
            script = m.resume(w.step, fence=policy, copied=not back, soak=back)
        return turns(run, plant(script, run), rng, fault=fault if runs < 6 else 0)

    actors = [w.client() for _ in range(CLIENTS)]
    movers = [begin()]
    for _ in range(MAX_TURNS):
        pick = rng.random()
        if movers and pick < 0.4:
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
                    if rng.random() < 0.4:
                        kind, source, target, epoch, back, w.step = "carry", target, source, epoch + 1, False, Step.PLANNED
                    else:
                        kind = "finish"
                elif w.step.ended:
                    movers.clear()
                    continue
            elif kind == "carry" and rng.random() < 0.25 and back:
                kind = "abort"
            elif kind == "abort" and rng.random() < 0.5 and w.step is not Step.ABORT:
                kind = "carry"
            if not movers:
                movers.append(begin())
        elif pick < 0.75 and actors:
            actor = rng.choice(actors)
            try:
                next(actor)
            except StopIteration:
                actors.remove(actor)
        else:
            w.flow(w.lanes["a"])
            w.flow(w.lanes["b"])
        if not movers and not actors:
            return judge(w)
    raise Violation(f"no end in sight at step {w.step.word}, {len(actors)} clients waiting")


def judge(w):
    """The invariants at the end of a life."""
    if set(w.places) != {w.catalog}:
        raise Violation(f"places {sorted(w.places)}, but the catalog says {w.catalog}")
    place = w.places[w.catalog]
    if place.guard or place.locked:
        raise Violation("the one place is closed")
    if lost := [key for key in w.acked if key not in place.rows]:
        raise Violation(f"acknowledged writes {lost} are lost")
    if w.objects or any(lane.slot or lane.sub for lane in w.lanes.values()):
        raise Violation(f"left behind: {w.objects}")
    return w.step, w.catalog
