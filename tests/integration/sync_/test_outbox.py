# Generated from tests/integration/async_/test_outbox.py by tests/generate_sync.py: change that file instead.
"""An effect on another tenant is applied exactly once and in order, or not at all if its transaction was not committed."""

from __future__ import annotations

import pytest
from fleet import Order
from sqlalchemy import select, text

from shardkit.errors import NoTenantError


def note(session, effect):
    session.add(Order(note=effect.payload["note"], amount=effect.payload["number"]))


HANDLERS = {"note": note}


def send(kit, sender, receiver, *numbers):
    with kit.begin(sender) as s:
        for number in numbers:
            payload = {"note": f"{sender} {number}", "number": number}
            kit.outbox.send(s, to=receiver, kind="note", payload=payload)


def arrived(kit, receiver):
    with kit.session(receiver) as s:
        return list(s.scalars(select(Order.amount).order_by(Order.id)))


def drained(kit):
    while kit.outbox.deliver(HANDLERS):
        pass


def test_effects_arrive_once_and_in_order(kit, tenant):
    receiver = f"{tenant}-receiver"
    send(kit, tenant, receiver, 1, 2, 3)
    send(kit, tenant, receiver, 4)
    lag = kit.outbox.lag()
    assert lag.waiting >= 4
    mine = lag.shards[kit.locate(tenant).shard]
    assert mine.waiting >= 4
    assert lag.oldest <= mine.oldest
    assert 0 < mine.age_s() <= lag.age_s()
    assert mine.age_s(mine.oldest) == 0
    drained(kit)
    assert arrived(kit, receiver) == [1, 2, 3, 4]
    drained(kit)
    assert arrived(kit, receiver) == [1, 2, 3, 4]
    assert kit.outbox.lag() == kit.outbox.lag()
    lag = kit.outbox.lag()
    assert (lag.waiting, lag.oldest, lag.shards, lag.age_s()) == (0, None, {}, 0.0)


def test_a_rolled_back_transaction_has_no_effects(kit, tenant):
    with pytest.raises(ZeroDivisionError):
        with kit.begin(tenant) as s:
            kit.outbox.send(s, to=f"{tenant}-receiver", kind="note", payload={"note": "never", "number": 0})
            raise ZeroDivisionError
    drained(kit)
    assert arrived(kit, f"{tenant}-receiver") == []


def test_a_worker_that_dies_before_it_says_so_applies_nothing_twice(kit, tenant, monkeypatch):
    receiver = f"{tenant}-receiver"
    send(kit, tenant, receiver, 1, 2)
    died = text("DELETE FROM shardkit_outbox WHERE id IN :ids AND false")
    from sqlalchemy import bindparam

    monkeypatch.setattr(f"{type(kit.outbox).__module__}.APPLIED", died.bindparams(bindparam("ids", expanding=True)))
    assert kit.outbox.deliver(HANDLERS) == 2
    monkeypatch.undo()
    assert (kit.outbox.lag()).waiting == 2
    drained(kit)
    assert arrived(kit, receiver) == [1, 2]
    assert (kit.outbox.lag()).waiting == 0


def test_an_effect_that_fails_holds_back_its_pair_only(kit, tenant, caplog):
    receiver, other = f"{tenant}-receiver", f"{tenant}-other"
    broken = [2]

    def picky(session, effect):
        note(session, effect)
        if effect.payload["number"] in broken:
            raise ZeroDivisionError

    send(kit, tenant, receiver, 1, 2, 3)
    send(kit, tenant, other, 4)
    for _ in range(2):
        kit.outbox.deliver({"note": picky})
    assert (arrived(kit, receiver), arrived(kit, other)) == ([1], [4])
    assert "could not be applied" in caplog.text
    broken.clear()
    drained(kit)
    assert arrived(kit, receiver) == [1, 2, 3]


def test_a_tenant_sees_its_own_outbox_only(kit, neighbours):
    one, other = neighbours
    send(kit, one, other, 1)
    with kit.session(other) as s:
        assert s.scalar(text("SELECT count(*) FROM shardkit_outbox")) == 0
    with kit.session(one) as s:
        assert s.scalar(text("SELECT count(*) FROM shardkit_outbox")) == 1
    drained(kit)


def test_an_operator_sends_nothing(kit):
    with kit.shard(0).session() as s:
        with pytest.raises(NoTenantError):
            kit.outbox.send(s, to="a", kind="note")
