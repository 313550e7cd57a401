"""Everything a SQLAlchemy session can do reaches the tenant's shard, and nothing else."""

from __future__ import annotations

import pytest
from fleet import Line, Order
from sqlalchemy import delete, exc, func, insert, select, text, update
from sqlalchemy.orm import selectinload

from shardkit.db import settle
from shardkit.errors import CommitUnknownError, NoTenantError, SessionError, TenantKeyError, UnknownShardError


async def notes(kit, tenant):
    async with kit.session(tenant) as s:
        return sorted(await s.scalars(select(Order.note)))


async def test_orm_objects_land_in_the_tenants_shard_and_come_back(kit, tenant, fleet):
    async with kit.begin(tenant) as s:
        s.add(Order(note="one", lines=[Line(what="a"), Line(what="b")]))
    async with kit.session(tenant) as s:
        order = (await s.scalars(select(Order).options(selectinload(Order.lines)))).one()
        assert order.tenant_id == tenant
        assert kit.locate_id(order.id) == kit.map.route(kit.locate(tenant).shard)
        assert [(line.what, line.tenant_id) for line in order.lines] == [("a", tenant), ("b", tenant)]
    assert fleet.count(kit, tenant, "note = 'one'") == 1


async def test_core_statements_reach_the_shard(kit, tenant):
    table = Order.__table__
    async with kit.begin(tenant) as s:
        await s.execute(table.insert().values(note="core"))
        await s.execute(table.update().values(amount=table.c.amount + 5))
        assert (await s.execute(select(table.c.note, table.c.amount, table.c.tenant_id))).all() == [("core", 5, tenant)]
        await s.execute(table.delete())
    assert await notes(kit, tenant) == []


async def test_text_reaches_the_shard_with_and_without_parameters(kit, tenant):
    async with kit.begin(tenant) as s:
        await s.execute(text("INSERT INTO orders (note, amount) VALUES ('raw', 1), ('raw 2', 2)"))
        await s.execute(text("UPDATE orders SET amount = amount + :more"), {"more": 10})
        assert await s.scalar(text("SELECT sum(amount) FROM orders")) == 23
    async with kit.session(tenant) as s:
        assert await s.scalar(text("SELECT count(*) FROM orders")) == 2


async def test_bulk_insert_with_and_without_returning(kit, tenant):
    rows = [{"note": f"bulk {number:04}"} for number in range(2500)]
    async with kit.begin(tenant) as s:
        await s.execute(insert(Order), rows[:1500])
        found = await s.scalars(insert(Order).returning(Order, sort_by_parameter_order=True), rows[1500:])
        assert [order.note for order in found] == [row["note"] for row in rows[1500:]]
    assert await notes(kit, tenant) == [row["note"] for row in rows]


async def test_insert_returning_gives_the_row_with_its_id_and_tenant(kit, tenant):
    async with kit.begin(tenant) as s:
        order = await s.scalar(insert(Order).values(note="back").returning(Order))
        assert (order.tenant_id, order.note) == (tenant, "back")
        assert kit.locate_id(order.id).shard == kit.locate(tenant).shard


async def test_a_savepoint_rolls_back_alone(kit, tenant):
    async with kit.begin(tenant) as s:
        s.add(Order(note="kept"))
        with pytest.raises(exc.IntegrityError):
            async with s.begin_nested():
                s.add_all([Order(note="twice"), Order(note="twice")])
                await s.flush()
        async with s.begin_nested():
            s.add(Order(note="second"))
    assert await notes(kit, tenant) == ["kept", "second"]


async def test_a_session_may_begin_with_a_savepoint(kit, tenant):
    async with kit.begin(tenant) as s:
        async with s.begin_nested() as point:
            s.add(Order(note="gone"))
            await s.flush()
            await point.rollback()
        assert await s.scalar(text("SELECT current_setting('shardkit.tenant')")) == tenant
        s.add(Order(note="kept"))
    assert await notes(kit, tenant) == ["kept"]


async def test_the_sessions_connection_is_routed(kit, tenant):
    async with kit.begin(tenant) as s:
        connection = await s.connection()
        await connection.execute(insert(Order), [{"note": "via connection"}])
        await connection.exec_driver_sql("INSERT INTO orders (note) VALUES (%s)", ("via driver",))
        assert (await connection.exec_driver_sql("SELECT count(*) FROM orders")).scalar() == 2
    assert await notes(kit, tenant) == ["via connection", "via driver"]


async def test_executemany_sends_every_row(kit, tenant):
    async with kit.begin(tenant) as s:
        await s.execute(
            text("INSERT INTO orders (note, amount) VALUES (:note, :amount)"),
            [{"note": f"many {number}", "amount": number} for number in range(50)],
        )
        await s.execute(
            text("UPDATE orders SET amount = amount * 2 WHERE note = :note"), [{"note": "many 3"}, {"note": "many 4"}]
        )
    async with kit.session(tenant) as s:
        assert (await s.execute(select(func.count(), func.sum(Order.amount)).select_from(Order))).one() == (50, 1225 + 3 + 4)


async def test_a_server_side_cursor_reads_in_parts_and_its_tenants_rows_only(kit, neighbours):
    tenant, other = neighbours
    for name in neighbours:
        async with kit.begin(name) as s:
            await s.execute(insert(Order), [{"note": f"{number:03}"} for number in range(100)])
    for session in (kit.session(tenant), kit.read(tenant)):
        async with session as s:
            found = [order.tenant_id async for order in await s.stream_scalars(select(Order).execution_options(yield_per=7))]
            assert found == [tenant] * 100


async def test_objects_live_on_after_commit_on_the_same_shard(kit, tenant):
    async with kit.session(tenant) as s:
        order = Order(note="first", lines=[Line(what="line")])
        s.add(order)
        await s.commit()
        await s.refresh(order, ["note", "lines"])
        assert (order.note, [line.what for line in order.lines]) == ("first", ["line"])
        order.note = "second"
        await s.commit()
        s.expire_all()
        await s.refresh(order)
        assert order.note == "second"
        await s.rollback()
        assert await s.scalar(select(Order.note)) == "second"
        assert s.route.shard == kit.locate(tenant).shard


async def test_merge_updates_a_detached_object(kit, tenant):
    async with kit.begin(tenant) as s:
        order = Order(note="before")
        s.add(order)
        await s.flush()
        oid = order.id
    async with kit.begin(tenant) as s:
        await s.merge(Order(id=oid, note="after"))
    assert await notes(kit, tenant) == ["after"]


async def test_orm_update_and_delete_by_statement(kit, tenant):
    async with kit.begin(tenant) as s:
        s.add_all([Order(note=f"{number}", amount=number) for number in range(4)])
        await s.flush()
        await s.execute(update(Order).where(Order.amount > 1).values(amount=0))
        await s.execute(delete(Order).where(Order.amount == 1))
        assert sorted((await s.scalars(select(Order.note))).all()) == ["0", "2", "3"]
        by_key = [{"id": oid, "amount": 7} for oid in await s.scalars(select(Order.id))]
        await s.execute(update(Order), by_key)
        assert await s.scalar(select(func.sum(Order.amount))) == 21


async def test_an_object_can_be_deleted(kit, tenant):
    async with kit.begin(tenant) as s:
        order = Order(note="short-lived")
        s.add(order)
        await s.flush()
        await s.delete(order)
    assert await notes(kit, tenant) == []


async def test_an_error_in_the_block_undoes_all_of_it(kit, tenant):
    with pytest.raises(ZeroDivisionError):
        async with kit.begin(tenant) as s:
            s.add(Order(note="never"))
            await s.flush()
            1 / 0  # noqa: B018  it raises
    assert await notes(kit, tenant) == []


async def test_a_session_that_is_not_committed_writes_nothing(kit, tenant):
    async with kit.session(tenant) as s:
        s.add(Order(note="never"))
        await s.flush()
    assert await notes(kit, tenant) == []


async def test_without_a_tenant_nothing_is_sent(kit):
    for open_session in (kit.session, kit.begin, kit.read):
        with pytest.raises(NoTenantError):
            open_session()
    with pytest.raises(NoTenantError):
        await kit.run(None, lambda s: s.scalar(text("SELECT 1")))


@pytest.mark.parametrize("bad", ["", 42, True, 1.5, b"acme", "x" * 1025, "nul\0", "\ud800"], ids=repr)
async def test_what_cannot_be_a_tenant_is_refused(kit, bad):
    for ask in (kit.session, kit.begin, kit.read, kit.tenant, kit.locate):
        with pytest.raises(TenantKeyError):
            ask(bad)


async def test_an_unknown_shard_is_refused(kit):
    with pytest.raises(UnknownShardError):
        kit.shard(9999)
    with pytest.raises(UnknownShardError):
        kit.session_for_id(17 << 10)  # born in shard 17 of 16


async def test_a_session_is_of_no_use_after_its_block(kit, tenant):
    async with kit.begin(tenant) as s:
        await s.scalar(select(func.count()).select_from(Order))
    with pytest.raises(exc.InvalidRequestError):
        await s.scalar(select(func.count()).select_from(Order))


@pytest.mark.parametrize("level", ["SERIALIZABLE", "REPEATABLE READ", "READ UNCOMMITTED"])
async def test_an_isolation_level_is_really_in_force_and_ends_with_the_transaction(open_kit, tenant, level):
    kit = open_kit(pool_size=1)
    async with kit.session(tenant) as s:
        await s.connection(execution_options={"isolation_level": level})
        assert await s.scalar(select(Order.note)) is None  # the first statement of a new connection
        assert await s.scalar(text("SHOW transaction_isolation")) == level.lower()
        assert await s.scalar(select(func.count()).select_from(Order)) == 0
        await s.commit()
        assert await s.scalar(text("SHOW transaction_isolation")) == "read committed"
    async with kit.session(tenant) as s:
        assert await s.scalar(text("SHOW transaction_isolation")) == "read committed"


async def test_a_serialization_failure_is_run_again(kit, tenant):
    async with kit.begin(tenant) as s:
        s.add(Order(note="counter"))
    tries = []

    async def raise_amount(s):
        await s.connection(execution_options={"isolation_level": "SERIALIZABLE"})
        order = (await s.scalars(select(Order))).one()
        if not tries:
            async with kit.begin(tenant) as rival:
                await rival.execute(update(Order).values(amount=100))
        tries.append(order.amount)
        order.amount += 1

    await kit.run(tenant, raise_amount)
    assert tries == [0, 100]
    async with kit.session(tenant) as s:
        assert await s.scalar(select(Order.amount)) == 101


async def test_autocommit_is_refused_and_the_connection_stays_good(open_kit, tenant):
    kit = open_kit(pool_size=1)
    async with kit.session(tenant) as s:
        with pytest.raises(SessionError, match="AUTOCOMMIT"):
            await s.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
    async with kit.begin(tenant) as s:
        assert await s.scalar(text("SHOW transaction_isolation")) == "read committed"
        s.add(Order(note="fine"))
    assert await notes(kit, tenant) == ["fine"]


async def test_run_passes_arguments_and_gives_the_result(kit, tenant):
    async def place(s, note, *, amount):
        order = Order(note=note, amount=amount)
        s.add(order)
        await s.flush()
        return order.id

    oid = await kit.run(tenant, place, "run", amount=3)
    async with kit.read(tenant) as s:
        assert (await s.get(Order, oid)).amount == 3


async def test_a_commit_of_another_session_is_not_taken_for_the_units_own(kit, tenant):
    async with kit.session(tenant) as other:
        other.add(Order(note="another's"))
        await other.flush()
        lost = CommitUnknownError("the answer to another COMMIT was lost")
        lost.server, lost.xid = other.route.server, await other.scalar(text("SELECT pg_current_xact_id()::text"))
        lost.timeline, lost.life = (await other.execute(text(settle.SQL["standing"]))).one()
        await other.commit()
    with pytest.raises(CommitUnknownError) as caught:
        await kit.run(tenant, _write_and_raise, lost)
    assert caught.value is lost
    assert await notes(kit, tenant) == ["another's"]


async def _write_and_raise(session, error):
    session.add(Order(note="the unit's own"))
    await session.flush()
    raise error


async def test_run_does_not_repeat_the_programs_own_errors(kit, tenant):
    calls = []

    async def fail(s):
        calls.append(1)
        s.add_all([Order(note="same"), Order(note="same")])

    with pytest.raises(exc.IntegrityError):
        await kit.run(tenant, fail)
    assert calls == [1]


async def test_the_global_session_sees_only_the_global_schema(kit, fleet):
    with fleet.admin() as catalog:
        catalog.execute("CREATE TABLE IF NOT EXISTS shardkit_global.plans (name text PRIMARY KEY)")
    async with kit.global_session() as s:
        await s.execute(text("INSERT INTO plans VALUES ('free') ON CONFLICT DO NOTHING"))
        await s.commit()
        assert await s.scalar(text("SELECT name FROM plans")) == "free"
        assert await s.scalar(text("SELECT current_user")) == "shardkit_app"
        with pytest.raises(exc.ProgrammingError):
            await s.execute(text("SELECT * FROM shardkit_catalog.cluster"))


async def test_operator_access_sees_the_whole_shard_and_an_id_leads_there(kit, neighbours):
    ids = []
    for name in neighbours:
        async with kit.begin(name) as s:
            order = Order(note="mine")
            s.add(order)
            await s.flush()
            ids.append(order.id)
    async with kit.session_for_id(ids[0]) as s:
        assert set(ids) <= set(await s.scalars(select(Order.id)))
        assert await s.scalar(text("SELECT current_user")) == "shardkit_operator"
    async with kit.session_for_id(ids[0], tenant=neighbours[0]) as s:
        assert list(await s.scalars(select(Order.id))) == ids[:1]
    with kit.tenant(neighbours[1]):
        async with kit.session_for_id(ids[0]) as s:
            assert await s.get(Order, ids[0]) is None
        async with kit.session_for_id(ids[0], operator=True) as s:
            assert (await s.get(Order, ids[0])).tenant_id == neighbours[0]
