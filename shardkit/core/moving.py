"""A move as a pure state machine: it yields effects, is fed their results, and may be killed between any two of them.

The order is the protocol. The journal's step is written before the effects it covers; every effect may be done again; what
an interrupted fence came to is not believed but asked of the source. Until the fence is committed a move can be aborted,
after that it can only go forward, because the source is closed and the one whole copy is the target's.

A runner (``shardkit.move``) does the effects on real servers; the simulator in ``tests/sim`` does them on a model.
"""

from __future__ import annotations

import enum
from collections.abc import Generator
from dataclasses import dataclass
from itertools import count
from typing import Any, Final


class Step(enum.IntEnum):
    """How far a move has come, in order. What a step covers may be half done."""

    PLANNED = 0
    COPY = 1
    STRUCTURE = 2
    STREAM = 3
    VERIFY = 4
    FENCE = 5
    FOLLOW = 6
    SOAK = 7
    FINISH = 8
    FINISHED = 9
    ABORT = 10
    ABORTED = 11

    @property
    def ended(self) -> bool:
        """Whether nothing of the move is left anywhere."""
        return self in (Step.FINISHED, Step.ABORTED)

    @property
    def word(self) -> str:
        """As the catalog and the CLI write it."""
        return self.name.lower()

    @classmethod
    def of(cls, word: str) -> Step:
        """The step written as *word*."""
        return cls[word.upper()]


class Busy(Exception):  # noqa: N818  not an error: the try is over, the next one follows
    """The fence could not be had within its budget; nothing changed, writers go on."""


class LostContact(Exception):  # noqa: N818  what was asked for may have happened
    """A server or its connection went away while an effect ran: it may or may not have been done."""


class PastNoReturn(Exception):  # noqa: N818  a state, not a fault
    """The fence is committed: the move can be finished or rolled back, not aborted."""


@dataclass(frozen=True, slots=True)
class Effect:
    """Something for the runner to do."""


@dataclass(frozen=True, slots=True)
class Enter(Effect):
    """Write in the journal that *step* begins. Refused if the lease was lost."""

    step: Step


@dataclass(frozen=True, slots=True)
class Expel(Effect):
    """End every session that an earlier run of this move still has on either server, so that it cannot act any more."""


@dataclass(frozen=True, slots=True)
class Check(Effect):
    """Refuse what would fail later, before a byte is copied."""


@dataclass(frozen=True, slots=True)
class Clean(Effect):
    """Drop every object registered for this move, wherever it is; what is not there is fine."""


@dataclass(frozen=True, slots=True)
class Publish(Effect):
    """Make the publication on the source."""


@dataclass(frozen=True, slots=True)
class Copy(Effect):
    """Slot, snapshot, bare tables, rows. Done again only after Clean."""


@dataclass(frozen=True, slots=True)
class Complete(Effect):
    """What of the structure is still missing on the target: indexes, constraints, views, triggers, grants; and guards."""


@dataclass(frozen=True, slots=True)
class Arm(Effect):
    """On the target: publication and slot of the way back, so that it misses nothing from the first write on."""


@dataclass(frozen=True, slots=True)
class Subscribe(Effect):
    """Let the target apply the source's changes since the snapshot."""


@dataclass(frozen=True, slots=True)
class CatchUp(Effect):
    """Wait until a mark written on the source shows on the target quickly."""


@dataclass(frozen=True, slots=True)
class Verify(Effect):
    """Compare structure and every row, while writes go on; from here on changed keys are remembered."""


@dataclass(frozen=True, slots=True)
class AskFence(Effect):
    """Whether the source is fenced: True or False, asked of the source itself."""


@dataclass(frozen=True, slots=True)
class Lock(Effect):
    """Begin the fence's transaction and hold off writers, waiting *wait_ms* at most. Raises Busy."""

    wait_ms: int


@dataclass(frozen=True, slots=True)
class Mark(Effect):
    """Write a mark on the source, behind every write that was let in."""


@dataclass(frozen=True, slots=True)
class AwaitMark(Effect):
    """Until the mark shows on the target: everything before it is applied. Raises Busy over budget."""


@dataclass(frozen=True, slots=True)
class VerifyChanged(Effect):
    """Compare what changed since Verify, and that nobody else wrote to the target. Raises Busy over budget."""


@dataclass(frozen=True, slots=True)
class CarrySequences(Effect):
    """Find out how far the source's sequences are; Open sets the target's past them, by a margin.

    After the fence, because only then nobody draws from the source any more; but who was just doing it falls into the margin.
    """

    margin: int


@dataclass(frozen=True, slots=True)
class CommitFence(Effect):
    """Rename the source's schema and commit: the durable fence, the point of no return."""


@dataclass(frozen=True, slots=True)
class Unlock(Effect):
    """Roll the fence's transaction back; writers go on."""


@dataclass(frozen=True, slots=True)
class LetThrough(Effect):
    """Keep the stream going and the writers writing for *pause_ms* before try number *attempt*. Raises when time is up."""

    pause_ms: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Open(Effect):
    """Give the target's copy the new epoch's name: from now on it takes writes."""


@dataclass(frozen=True, slots=True)
class Flip(Effect):
    """Send the shard to the target in the catalog, by compare-and-set, with the journal's step FOLLOW in the same commit."""


@dataclass(frozen=True, slots=True)
class Follow(Effect):
    """End the forward stream and let the source follow the target, for a rollback without a copy."""


@dataclass(frozen=True, slots=True)
class FencePolicy:
    """How hard to try. A try waits a quarter of the budget for its lock at first, and up to two thirds of it later."""

    budget_ms: int = 250
    first_pause_ms: int = 20
    longest_pause_ms: int = 1000

    def wait_ms(self, attempt: int) -> int:
        """How long try number *attempt* may wait for its lock; the rest of the budget is for what the lock is for."""
        return max(1, min(self.budget_ms * attempt // 4, self.budget_ms * 2 // 3))

    def pause_ms(self, attempt: int) -> int:
        """How long writers are left alone after try number *attempt*."""
        return min(self.first_pause_ms << min(attempt - 1, 16), self.longest_pause_ms)


ID_MARGIN: Final = 8 * 1024
"""How far ids jump at a move, in positions: 8 ms. What sessions were just drawing while the fence was committed falls into it,
and by the time clients arrive at the target the clock has caught up, so that nobody waits for it."""
SEQUENCE_MARGIN: Final = 100
"""How many values other sequences jump, in steps of their increment."""


def goes_on_at(last: int, *, increment: int, lowest: int, highest: int, margin: int) -> int:
    """The value from which a sequence goes on whose last one was *last*: *margin* steps further, or half of what is left."""
    left = (highest - last if increment > 0 else last - lowest) // abs(increment)
    return last + increment * min(margin, left // 2)


Script = Generator[Effect, Any, Step]
"""Yields effects, is fed their results (or their exceptions), returns the step it ended at."""


def carry(step: Step, *, fence: FencePolicy, copied: bool = False, soak: bool = True) -> Script:
    """Carry a shard over, from the journal's last *step* on.

    *copied*: there is a follower that streams already (a rollback). *soak*: leave the old place behind as a follower,
    else clean up at once. Exceptions of effects end it, with the source unlocked; it can then be begun again.
    """
    yield Expel()
    if step <= Step.FENCE:
        if not (step is Step.FENCE and (yield AskFence())):
            if not copied:
                yield from _copy(step)
            yield Enter(Step.VERIFY)
            yield CatchUp()
            yield Verify()
            yield Enter(Step.FENCE)
            yield from _fence(fence)
        yield CarrySequences(ID_MARGIN)
        yield Open()
        yield Flip()
    if step <= Step.FOLLOW:
        if soak:
            yield Follow()
            yield Enter(Step.SOAK)
            return Step.SOAK
        step = Step.SOAK
    return (yield from finish(step)) if not soak else step


def _copy(step: Step) -> Generator[Effect, Any, None]:
    if step < Step.STRUCTURE:
        yield Clean()  # a copy that was begun before cannot be gone on with: its snapshot went with its session
        yield Check()
        yield Enter(Step.COPY)
        yield Publish()
        yield Copy()
    if step <= Step.STRUCTURE:
        yield Enter(Step.STRUCTURE)
        yield Complete()
    if step <= Step.STREAM:
        yield Enter(Step.STREAM)
        yield Arm()
        yield Subscribe()


def _fence(policy: FencePolicy) -> Generator[Effect, Any, None]:
    """Try until the fence is committed. Between tries writers get through."""
    for attempt in count(1):
        try:
            yield Lock(policy.wait_ms(attempt))
            yield Mark()
            yield AwaitMark()
            yield VerifyChanged()
        except Busy:
            yield Unlock()
        except Exception:
            yield Unlock()
            raise
        else:
            try:
                yield CommitFence()
            except (Busy, LostContact):  # rolled back, or its answer was lost
                yield Expel()
                if (yield AskFence()):
                    return
            else:
                return
        yield LetThrough(policy.pause_ms(attempt), attempt + 1)


def finish(step: Step) -> Script:
    """Drop the follower with everything that belongs to it."""
    if step < Step.FINISHED:
        yield Expel()
        yield Enter(Step.FINISH)
        yield Clean()
        yield Enter(Step.FINISHED)
    return Step.FINISHED


def abort(step: Step) -> Script:
    """Undo a move of which the fence is not committed. Raises PastNoReturn otherwise."""
    yield Expel()
    if Step.FENCE < step < Step.ABORT or (step is Step.FENCE and (yield AskFence())):
        raise PastNoReturn
    yield Enter(Step.ABORT)
    yield Clean()
    yield Enter(Step.ABORTED)
    return Step.ABORTED


def resume(step: Step, *, fence: FencePolicy, copied: bool = False, soak: bool = True) -> Script:
    """Go on with whatever the journal says was under way."""
    if step is Step.ABORT:
        return abort(step)
    if step is Step.FINISH:
        return finish(step)
    return carry(step, fence=fence, copied=copied, soak=soak)
