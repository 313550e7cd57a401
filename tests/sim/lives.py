"""What every model of ``shardkit.core.moving`` shares: the mover's half of a fence, what may hit it, and the course of a life.

A seed decides who goes next, and where the mover is killed, hangs, or loses an answer.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from shardkit.core import moving as m
from shardkit.core.moving import Busy, LostContact, PastNoReturn, Step

METHODS = {kind: re.sub(r"\B(?=[A-Z])", "_", kind.__name__).lower() for kind in m.Effect.__subclasses__()}


class Violation(AssertionError):
    """An invariant does not hold."""


class Dead(Exception):
    """The session of this run was ended by a later run."""


class Place:
    """A schema on a server."""

    __slots__ = ("guard", "locked", "open", "rows", "seq")

    def __init__(self):
        self.rows, self.seq, self.guard, self.locked, self.open = {}, 0, False, None, 0


class World:
    """What a life is lived in. A model says who acts, what a mover does, what flows by itself, and what holds at the end."""

    movers_share = 0.4  # of the turns; 0.35 are the actors', the rest is what flows
    returns_share = 0.4  # of the moves that came to soak
    max_turns = 4000

    def __init__(self, rng, bug):
        self.rng, self.bug = rng, bug
        self.places = {}
        self.lease, self.fence = 0, None  # (lease, place) of the open fence transaction
        self.objects, self.step = set(), Step.PLANNED

    def rename(self, old, new):
        place = self.places[new] = self.places.pop(old)
        return place


class Mover:
    """One mover process. A model has a method for each effect that does something in its world; this one has the fence."""

    def __init__(self, world, source_at, target_at):
        self.w, self.source_at, self.target_at, self.bug = world, source_at, target_at, world.bug
        world.lease += 1
        self.lease = world.lease
        self.marked = 0

    @property
    def after(self):
        """Where the source is once it is fenced."""
        return self.source_at[0], self.source_at[1] + 1

    @property
    def opened(self):
        """Where the target takes writes."""
        return self.target_at[0], self.target_at[1] + 1

    def do(self, effect):
        """The effect's result; NotImplemented: wait, ask again."""
        if type(effect) is not m.Expel and self.lease != self.w.lease:
            raise Dead
        return getattr(self, METHODS[type(effect)])(effect)

    def nothing(self, _):
        return None

    check = publish = complete = arm = subscribe = verify = verify_changed = carry_sequences = let_through = follow = nothing

    def enter(self, effect):
        self.w.step = effect.step

    def expel(self, _):
        if self.lease < self.w.lease:
            raise Dead
        self.release()

    def release(self):
        if self.w.fence is not None:
            self.w.fence[1].locked = None
            self.w.fence = None

    def ask_fence(self, _):
        return self.after in self.w.places

    def lock(self, _):
        place = self.w.places[self.source_at]
        if place.open:
            if self.w.rng.random() < 0.3:
                raise Busy
            return NotImplemented
        place.locked = self.lease
        self.w.fence = (self.lease, place)
        return None

    def await_mark(self, _):
        if self.heard >= self.marked:
            return None
        if self.w.rng.random() < 0.03:
            raise Busy
        return NotImplemented

    def commit_fence(self, _):
        if self.w.fence is None and self.bug != "no lock":
            raise Busy  # the server had ended the transaction
        self.close(self.w.rename(self.source_at, self.after))
        self.release()

    def unlock(self, _):
        self.release()


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


def live(world, seed, *, plant=lambda script, _run: script, bug="", fault=0.04):
    """One whole life in *world*(rng, bug): begun, hit, gone on with, aborted or rolled back, cleaned up. Raises Violation.

    *plant* makes another script of the mover's; a *bug* is one of the model's own.
    """
    rng = random.Random(seed)
    w = world(rng, bug)
    kind, returning, runs = "carry", False, 0

    def begin():
        nonlocal runs
        runs += 1
        run = w.mover()
        if kind == "finish":
            script = m.finish(w.step)
        elif kind == "abort" and w.step is not Step.FINISH:
            script = m.abort(w.step)
        else:
            script = m.resume(w.step, fence=m.FencePolicy(), copied=returning, soak=not returning)
        return turns(run, plant(script, run), rng, fault=fault if runs < 6 else 0)

    actors = w.actors()
    movers = [begin()]
    for _ in range(w.max_turns):
        pick = rng.random()
        if movers and pick < w.movers_share:
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
                    if rng.random() < w.returns_share:
                        kind, returning, w.step = "carry", True, Step.PLANNED
                        w.turn_back()
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
        elif pick < w.movers_share + 0.35 and actors:
            actor = rng.choice(actors)
            try:
                next(actor)
            except StopIteration:
                actors.remove(actor)
        else:
            w.flow()
        if not movers and not actors:
            return w.judge()
    raise Violation(f"no end in sight at step {w.step.word}, {len(actors)} actors waiting")


def ends(simulate, seeds):
    """How lives ended, and how many of them so."""
    return Counter(simulate(seed) for seed in seeds)


def many(simulate, count, *, start, a_time=10_000):
    """How many of *count* lives came to an end, on two processors."""
    parts = [range(seed, seed + a_time) for seed in range(start, start + count, a_time)]
    with ProcessPoolExecutor(2) as pool:
        return sum(part.total() for part in pool.map(partial(ends, simulate), parts))
