"""Bugs for the script of a move, and whether a model finds them."""

from __future__ import annotations

from shardkit.core import moving as m
from tests.sim.lives import Violation


def altered(change):
    """The script with ``change(effect, run)`` done in place of each effect; the result of the last one is the script's."""

    def plant(script, run):
        result, error = None, None
        while True:
            try:
                effect = script.throw(error) if error else script.send(result)
            except StopIteration as end:
                return end.value
            result = error = None
            try:
                for planted in change(effect, run):
                    result = yield planted
            except Exception as exc:
                error = exc

    return plant


def without(*kinds):
    """The script with some effects left out."""
    return altered(lambda effect, _: () if isinstance(effect, kinds) else (effect,))


def before(early, late):
    """The script with effect *early* done ahead of each *late*."""
    return altered(lambda effect, _: (early, effect) if isinstance(effect, late) else (effect,))


def unlocked(script, run):
    """The script that does not lock, and servers that let it commit."""
    run.bug = "no lock"
    return without(m.Lock)(script, run)


COMMON = {
    "flip before the fence": before(m.Flip(), m.Lock),
    "no wait for the mark": without(m.AwaitMark),
    "copy again on top of a begun copy": altered(
        lambda effect, run: () if isinstance(effect, m.Clean) and run.w.step < m.Step.STRUCTURE else (effect,)
    ),
    "target opened before the fence": before(m.Open(), m.Lock),
    "fence without a lock": unlocked,
    "cleanup before the flip": before(m.Clean(), m.Open),
    "an earlier run is not expelled": without(m.Expel),
    "the fence's outcome is believed, not asked": without(m.AskFence),
    "fence not committed": without(m.CommitFence),
}
"""Script → planted script, by what is wrong with it: bugs that every model has to find."""


def found(simulate, **planted):
    """Whether one of 5,000 lives shows what is planted."""
    for seed in range(5_000):
        try:
            simulate(seed, **planted)
        except Violation:
            return True
        except (KeyError, AttributeError):  # the model cannot do what it is told: no life that ends wrongly, look on
            continue
    return False
