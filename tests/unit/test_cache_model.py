"""The protocol has no bad interleaving, and the search for one finds every planted bug."""

from __future__ import annotations

import pytest
from cache_model import Plan, Rules, ViolationError, explore

from shardkit.core import cacheproto as proto
from shardkit.core.cacheproto import Found

PLANS = [
    Plan(writers=2, readers=2, flushes=1),
    Plan(writers=1, readers=2, reads=2, flushes=1),
    Plan(writers=2, readers=1, reads=2, flushes=2),
    Plan(writers=2, readers=2, moves=1),
    Plan(writers=1, readers=2, flushes=1, moves=1),
    Plan(writers=1, readers=2, reads=2, evictions=1),
    Plan(writers=1, readers=2, promotions=1),
    Plan(writers=1, readers=1, reads=2, promotions=2),
    Plan(writers=1, readers=1, reads=2, promotions=1, renamings=1),
    Plan(writers=1, readers=2, renamings=1),
    Plan(writers=1, readers=1, reads=2, promotions=1, flushes=1),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "plan",
    [Plan(writers=2, readers=1, promotions=1, renamings=1), Plan(writers=1, readers=2, renamings=2)],
    ids=str,
)
def test_larger_plans_have_no_bad_interleaving(plan):
    assert explore(plan) > 1000


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_no_interleaving_returns_less_than_was_committed(plan):
    assert explore(plan) > 1000


class NoBarrier(Rules):
    @staticmethod
    def settled(xids, _barrier, snapshot):
        return proto.settled(xids, 0, snapshot)


class BarrierWithoutNonce(Rules):
    @staticmethod
    def swap_barrier(_value, _old, new):
        return new


class BarrierFromXmax(Rules):
    @staticmethod
    def barrier_xid(server):
        return server.xmax, server


class NotSettled(Rules):
    @staticmethod
    def settled(_xids, _barrier, _snapshot):
        return True


class RunningTakenForFinished(Rules):
    @staticmethod
    def settled(xids, barrier, snapshot):
        return proto.settled(xids, barrier, snapshot._replace(running=frozenset()))


class FillWithoutCompare(Rules):
    @staticmethod
    def swap(_value, _old, new):
        return new or None


class NoMarker(Rules):
    mark_before_commit = False


class MarkerAfterCommit(Rules):
    mark_before_commit = False
    mark_after_commit = True


class MarkerForgetsOthers(Rules):
    @staticmethod
    def mark(_value, *, xid, epoch):
        return proto.mark(None, xid=xid, epoch=epoch)


class LeaseForgetsMarked(Rules):
    @staticmethod
    def lease(value, **given):
        found, left = proto.lease(value, **given)
        return found, left and proto.pack_marker(proto.parse_marker(left)._replace(xids=b"")) if found is Found.LEASE else left


class SelectBeforeLease(Rules):
    select_before_lease = True


class BarrierOfAnotherServer(Rules):
    @staticmethod
    def lease(value, *, epoch, barrier, **given):
        if barrier and barrier[:1] == b"B":
            term = barrier[-proto.TERM_LENGTH :]
            barrier = proto.pack_barrier(epoch=epoch, xid=proto.parse_barrier(barrier), term=term)
        return proto.lease(value, epoch=epoch, barrier=barrier, **given)


class TermInTheName(Rules):
    """As it was: connections of two terms look in two places."""

    @staticmethod
    def place(promotions, renamings):
        return promotions * 2 + renamings


class NoTerm(Rules):
    @staticmethod
    def term(_promotions, _renamings):
        return b"@no term."


class TermOfTheProcessOnly(Rules):
    """Which is the same again after a fail-back."""

    @staticmethod
    def term(promotions, _renamings):
        return b"@%08d" % (promotions % 2)


class FillInLatestTerm(Rules):
    fill_in_latest_term = True


class BarrierInLatestTerm(Rules):
    barrier_in_latest_term = True


class BarrierOfAnotherTerm(Rules):
    @staticmethod
    def lease(value, *, term, barrier, **given):
        if barrier and barrier[:1] == b"B":
            barrier = barrier[: -proto.TERM_LENGTH] + term
        return proto.lease(value, term=term, barrier=barrier, **given)


PLANTED = [
    (NoBarrier, Plan(flushes=1, readers=1, reads=2)),
    (BarrierWithoutNonce, Plan(flushes=2, readers=2, reads=2)),
    (BarrierFromXmax, Plan(flushes=1, readers=1, reads=2)),
    (NotSettled, Plan(reads=2)),
    (RunningTakenForFinished, Plan(writers=2, reads=2)),
    (FillWithoutCompare, Plan(readers=2, reads=2)),
    (NoMarker, Plan(reads=2)),
    (MarkerAfterCommit, Plan(reads=2)),
    (MarkerForgetsOthers, Plan(writers=2, reads=2)),
    (LeaseForgetsMarked, Plan(reads=2)),
    (SelectBeforeLease, Plan(reads=2, readers=2, evictions=1)),
    (BarrierOfAnotherServer, Plan(readers=2, reads=2, moves=1, flushes=2, second=30)),
    (TermInTheName, Plan(reads=2, renamings=1)),
    (NoTerm, Plan(reads=2, promotions=1)),
    (TermOfTheProcessOnly, Plan(reads=2, promotions=2)),
    (FillInLatestTerm, Plan(reads=2, promotions=1)),
    (BarrierInLatestTerm, Plan(reads=2, promotions=1)),
    (BarrierOfAnotherTerm, Plan(reads=2, promotions=1)),
]


@pytest.mark.parametrize(("rules", "plan"), PLANTED, ids=lambda x: getattr(x, "__name__", ""))
def test_planted_bug_is_found(rules, plan):
    with pytest.raises(ViolationError):
        explore(plan, rules)
