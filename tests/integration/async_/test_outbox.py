"""An effect on another tenant is applied exactly once and in order, or not at all if its transaction was not committed."""

from __future__ import annotations

import pytest
from fleet import Order
from sqlalchemy import select, text

from shardkit.errors import NoTenantError


async def note(session, effect):
    session.add(Order(note=effect.payload["note"], amount=effect.payload["number"]))


HANDLERS = {"note": note}


async def send(kit, sender, receiver, *numbers):
    async with kit.begin(sender) as s:
        for number in numbers:
            payload = {"note": f"{sender} {number}", "number": number}
            await kit.outbox.send(s, to=receiver, kind="note", payload=payload)


async def arrived(kit, receiver):
    async with kit.session(receiver) as s:
        return list(await s.scalars(select(Order.amount).order_by(Order.id)))


async def drained(kit):
    while await kit.outbox.deliver(HANDLERS):
        pass


async def test_effects_arrive_once_and_in_order(kit, tenant):
    receiver = f"{tenant}-receiver"
    await send(kit, tenant, receiver, 1, 2, 3)
    await send(kit, tenant, receiver, 4)
    lag = await kit.outbox.lag()
    assert lag.waiting >= 4
    mine = lag.shards[kit.locate(tenant).shard]
    assert mine.waiting >= 4
    assert lag.oldest <= mine.oldest
    assert 0 < mine.age_s() <= lag.age_s()
    assert mine.age_s(mine.oldest) == 0
    await drained(kit)
    assert await arrived(kit, receiver) == [1, 2, 3, 4]
    await drained(kit)
    assert await arrived(kit, receiver) == [1, 2, 3, 4]
    assert await kit.outbox.lag() == await kit.outbox.lag()
    lag = await kit.outbox.lag()
    assert (lag.waiting, lag.oldest, lag.shards, lag.age_s()) == (0, None, {}, 0.0)


async def test_a_rolled_back_transaction_has_no_effects(kit, tenant):
    with pytest.raises(ZeroDivisionError):
        async with kit.begin(tenant) as s:
            await kit.outbox.send(s, to=f"{tenant}-receiver", kind="note", payload={"note": "never", "number": 0})
            raise ZeroDivisionError
    await drained(kit)
    assert await arrived(kit, f"{tenant}-receiver") == []


async def test_a_worker_that_dies_before_it_says_so_applies_nothing_twice(kit, tenant, monkeypatch):
    receiver = f"{tenant}-receiver"
    await send(kit, tenant, receiver, 1, 2)
    died = text("DELETE FROM shardkit_outbox WHERE id IN :ids AND false")
    from sqlalchemy import bindparam

    monkeypatch.setattr(f"{type(kit.outbox).__module__}.APPLIED", died.bindparams(bindparam("ids", expanding=True)))
    assert await kit.outbox.deliver(HANDLERS) == 2
    monkeypatch.undo()
    assert (await kit.outbox.lag()).waiting == 2
    await drained(kit)
    assert await arrived(kit, receiver) == [1, 2]
    assert (await kit.outbox.lag()).waiting == 0


async def test_an_effect_that_fails_holds_back_its_pair_only(kit, tenant, caplog):
    receiver, other = f"{tenant}-receiver", f"{tenant}-other"
    broken = [2]

    async def picky(session, effect):
        await note(session, effect)
        if effect.payload["number"] in broken:
            raise ZeroDivisionError

    await send(kit, tenant, receiver, 1, 2, 3)
    await send(kit, tenant, other, 4)
    for _ in range(2):
        await kit.outbox.deliver({"note": picky})
    assert (await arrived(kit, receiver), await arrived(kit, other)) == ([1], [4])
    assert "could not be applied" in caplog.text
    broken.clear()
    await drained(kit)
    assert await arrived(kit, receiver) == [1, 2, 3]


async def test_a_tenant_sees_its_own_outbox_only(kit, neighbours):
    one, other = neighbours
    await send(kit, one, other, 1)
    async with kit.session(other) as s:
        assert await s.scalar(text("SELECT count(*) FROM shardkit_outbox")) == 0
    async with kit.session(one) as s:
        assert await s.scalar(text("SELECT count(*) FROM shardkit_outbox")) == 1
    await drained(kit)


async def test_an_operator_sends_nothing(kit):
    async with kit.shard(0).session() as s:
        with pytest.raises(NoTenantError):
            await kit.outbox.send(s, to="a", kind="note")
