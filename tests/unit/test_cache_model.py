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
]


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
            barrier = proto.pack_barrier(epoch=epoch, xid=proto.parse_barrier(barrier))
        return proto.lease(value, epoch=epoch, barrier=barrier, **given)


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
]


@pytest.mark.parametrize(("rules", "plan"), PLANTED, ids=lambda x: getattr(x, "__name__", ""))
def test_planted_bug_is_found(rules, plan):
    with pytest.raises(ViolationError):
        explore(plan, rules)
