"""An effect on another tenant is applied exactly once and in order, or not at all if its transaction was not committed."""

from __future__ import annotations

import pytest
from fleet import Order
from sqlalchemy import select, text

from shardkit.errors import FanOutError, NoTenantError


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


async def test_effects_held_back_do_not_take_the_places_of_others(kit, tenant, caplog):
    sender, bad, good = f"{tenant}-from", f"{tenant}-bad", f"{tenant}-good"
    async with kit.begin(sender) as s:
        for _ in range(5):
            await kit.outbox.send(s, to=bad, kind="bad")
        for number in range(5):
            await kit.outbox.send(s, to=good, kind="good", payload=number)
    got = []

    async def fails(session, effect):
        got.append("bad")
        raise RuntimeError("planted")

    async def works(session, effect):
        got.append(effect.payload)

    assert await kit.outbox.deliver({"bad": fails, "good": works}, limit=3) == 3
    assert await kit.outbox.deliver({"bad": fails, "good": works}, limit=3) == 2
    assert got == ["bad", 0, 1, 2, "bad", 3, 4]
    assert "planted" in caplog.text

    async def skips(session, effect):
        pass

    assert await kit.outbox.deliver({"bad": skips}) == 5


async def test_effects_of_servers_that_answer_are_delivered(open_kit, caplog):
    """One of two servers is down: the effects in its outboxes wait, those of the other one are delivered."""
    whole, partly = open_kit(), open_kit(servers={"pg2": "postgresql://postgres@127.0.0.1:9/none"})
    names = [f"outage-{n}" for n in range(200)]
    here, there = (next(n for n in names if whole.locate(n).server == server) for server in ("pg1", "pg2"))
    for name in (here, there):
        async with whole.begin(name) as s:
            await whole.outbox.send(s, to=name, kind="note")
    got = []

    async def note(session, effect):
        got.append(effect.to_tenant)

    assert await partly.outbox.deliver({"note": note}) == 1
    assert got == [here]
    assert "left for the next time" in caplog.text
    assert await whole.outbox.deliver({"note": note}) == 1
    assert got == [here, there]


async def test_a_worker_outlives_the_servers(open_kit, caplog):
    dead = "postgresql://postgres@127.0.0.1:9/none"
    kit = open_kit(servers={"pg1": dead, "pg2": dead})
    rounds = iter([False, False, True])
    await kit.outbox.work({}, until=lambda: next(rounds), every_s=0)
    assert caplog.text.count("that is tried again") == 2
    with pytest.raises(FanOutError):
        await kit.outbox.deliver({})


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
