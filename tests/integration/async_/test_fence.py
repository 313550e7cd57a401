"""A program with an old map is led on before it has done anything, and told when it has; it never writes to a closed copy."""

from __future__ import annotations

import threading

import pytest
from fleet import Line, Order
from sqlalchemy import exc, func, insert, select, text

from shardkit.core.names import schema_name
from shardkit.errors import Outcome, ShardMovedError

NOTE = "before the move"


async def add_order(s):
    s.add(Order(note="new"))
    await s.flush()


async def add_family(s):
    s.add(Order(note="new", lines=[Line(what="a"), Line(what="b")]))
    await s.flush()


async def core_insert(s):
    await s.execute(Order.__table__.insert().values(note="new"))


async def raw_insert(s):
    await s.execute(text("INSERT INTO orders (note) VALUES ('new')"))


async def raw_insert_with_parameters(s):
    await s.execute(text("INSERT INTO orders (note) VALUES (:note)"), {"note": "new"})


async def raw_executemany(s):
    await s.execute(text("INSERT INTO orders (note) VALUES (:note)"), [{"note": "new"}, {"note": "new too"}])


async def bulk_insert(s):
    await s.execute(insert(Order), [{"note": "new"}, *({"note": f"new {number}"} for number in range(100))])


async def bulk_insert_in_batches(s):
    rows = [{"note": "new"}, *({"note": f"new {number}"} for number in range(2500))]
    found = await s.scalars(insert(Order).returning(Order.id), rows)
    assert len(set(found)) == 2501


async def insert_in_a_savepoint_after_a_read(s):
    assert (await s.scalar(select(Order.note))) == NOTE
    async with s.begin_nested():
        await add_family(s)


async def insert_over_the_connection(s):
    connection = await s.connection()
    await connection.execute(insert(Order), {"note": "new"})


WRITES = [
    add_order,
    add_family,
    core_insert,
    raw_insert,
    raw_insert_with_parameters,
    raw_executemany,
    bulk_insert,
    bulk_insert_in_batches,
    insert_in_a_savepoint_after_a_read,
    insert_over_the_connection,
]


@pytest.fixture
def stale(open_kit, fleet, tenant):
    """``stale(elsewhere=True)``: a kit whose map is from before a move of the tenant's shard, and a check of the rest."""

    async def make(*, elsewhere, **given):
        kit = open_kit(**given)
        await kit.refresh()
        async with kit.begin(tenant) as s:
            s.add(Order(note=NOTE))
        route = kit.locate(tenant)
        kit._router.watch.close()  # it hears of nothing any more
        fleet.move(route, elsewhere=elsewhere)
        assert kit.locate(tenant) == route
        return kit

    return make


@pytest.mark.parametrize("pool_size", [1, 3])
@pytest.mark.parametrize("elsewhere", [False, True], ids=["renamed", "moved"])
@pytest.mark.parametrize("write", WRITES, ids=lambda work: work.__name__)
async def test_a_first_write_is_led_on(stale, fleet, tenant, write, elsewhere, pool_size):
    kit = await stale(elsewhere=elsewhere, pool_size=pool_size)
    before = kit.locate(tenant)
    async with kit.begin(tenant) as s:
        await write(s)
        assert s.route.epoch == before.epoch + 1
        assert await s.scalar(text("SHOW search_path")) == schema_name(before.shard, before.epoch + 1)
        assert await s.scalar(select(func.count()).select_from(Order).where(Order.note == "new")) == 1
    assert fleet.count(kit, tenant, "note = 'new'") == 1
    async with kit.begin(tenant) as s:  # and the pool is in order
        assert await s.scalar(select(func.count()).select_from(Order).where(Order.note == NOTE)) == 1


@pytest.mark.parametrize("elsewhere", [False, True], ids=["renamed", "moved"])
async def test_a_first_read_is_led_on(stale, tenant, elsewhere):
    kit = await stale(elsewhere=elsewhere, pool_size=1)
    async with kit.read(tenant) as s:
        order = (await s.scalars(select(Order))).one()
        assert order.note == NOTE
        assert (await s.scalars(select(Order.note))).all() == [NOTE]
    async with kit.read(tenant) as s:
        assert (await s.get(Order, order.id)).note == NOTE


@pytest.mark.parametrize("elsewhere", [False, True], ids=["renamed", "moved"])
async def test_a_get_is_led_on(stale, tenant, elsewhere, kit):
    kit = await stale(elsewhere=elsewhere, pool_size=1)
    async with kit.session(tenant) as s:
        assert await s.get(Order, 1) is None
        assert (await s.scalars(select(Order.note))).all() == [NOTE]


async def test_the_isolation_level_is_led_on_too(stale, tenant):
    kit = await stale(elsewhere=True)
    async with kit.session(tenant) as s:
        await s.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        assert (await s.scalars(select(Order.note))).all() == [NOTE]
        assert await s.scalar(text("SHOW transaction_isolation")) == "repeatable read"


async def test_an_operator_is_led_on(stale, tenant):
    kit = await stale(elsewhere=True)
    async with kit.shard(kit.locate(tenant).shard).session() as s:
        assert NOTE in (await s.scalars(select(Order.note).where(Order.tenant_id == tenant))).all()
        assert await s.scalar(text("SELECT current_user")) == "shardkit_operator"


async def test_a_server_side_cursor_is_led_on_or_told(stale, tenant):
    kit = await stale(elsewhere=True)
    with pytest.raises(ShardMovedError) as caught:
        async with kit.session(tenant) as s:
            [note async for note in await s.stream_scalars(select(Order.note).execution_options(yield_per=5))]
    assert (caught.value.outcome, caught.value.retryable) == (Outcome.NOT_DONE, True)


@pytest.mark.parametrize("elsewhere", [False, True], ids=["renamed", "moved"])
async def test_a_map_that_flips_later_is_waited_for(open_kit, fleet, tenant, elsewhere):
    kit = open_kit(move_wait_s=30.0)
    async with kit.begin(tenant) as s:
        s.add(Order(note=NOTE))
    route = kit.locate(tenant)
    target = fleet.other(route.server) if elsewhere else route.server
    if elsewhere:
        fleet.copy(route, target)
    fleet.close_epoch(route)
    flipper = threading.Timer(0.5, fleet.flip, [route], {"server": target})
    flipper.start()
    try:
        async with kit.begin(tenant) as s:
            assert (await s.scalars(select(Order.note))).all() == [NOTE]
            assert s.route.epoch == route.epoch + 1
    finally:
        flipper.join()


async def test_a_map_that_never_flips_is_given_up(open_kit, fleet, tenant):
    kit = open_kit(move_wait_s=0.2)
    async with kit.begin(tenant) as s:
        s.add(Order(note=NOTE))
    route = kit.locate(tenant)
    fleet.close_epoch(route)
    try:
        with pytest.raises(ShardMovedError, match="being moved") as caught:
            async with kit.begin(tenant) as s:
                await add_order(s)
        assert (caught.value.outcome, caught.value.retryable) == (Outcome.NOT_DONE, True)
    finally:
        fleet.flip(route)
    async with kit.begin(tenant) as s:
        assert (await s.scalars(select(Order.note))).all() == [NOTE]


@pytest.mark.parametrize("elsewhere", [False, True], ids=["renamed", "moved"])
async def test_in_the_middle_of_a_transaction_it_is_an_error_and_nothing_is_written(open_kit, fleet, tenant, elsewhere):
    kit = open_kit()
    async with kit.begin(tenant) as s:
        s.add(Order(note=NOTE))
    route = kit.locate(tenant)
    with pytest.raises(ShardMovedError) as caught:
        async with kit.begin(tenant) as s:
            assert await s.scalar(text("SELECT 1")) == 1  # holds no lock that a fence waits for
            fleet.move(route, elsewhere=elsewhere)
            await add_order(s)
    assert (caught.value.outcome, caught.value.retryable) == (Outcome.NOT_DONE, True)
    assert fleet.count(kit, tenant, "note = 'new'") == 0
    async with kit.begin(tenant) as s:
        assert (await s.scalars(select(Order.note))).all() == [NOTE]


async def test_run_hides_a_move(open_kit, fleet, tenant):
    kit = open_kit()
    async with kit.begin(tenant) as s:
        s.add(Order(note=NOTE))
    route = kit.locate(tenant)
    calls = []

    async def work(s):
        calls.append(await s.scalar(text("SELECT 1")))
        if len(calls) == 1:
            fleet.move(route, elsewhere=True)
        await add_family(s)
        return s.route.epoch

    assert await kit.run(tenant, work) == route.epoch + 1
    assert calls == [1, 1]
    assert fleet.count(kit, tenant, "note = 'new'") == 1


async def test_a_table_that_does_not_exist_is_the_programs_own_error(kit, tenant):
    async with kit.session(tenant) as s:
        with pytest.raises(exc.ProgrammingError, match="no_such_table"):
            await s.execute(text("SELECT * FROM no_such_table"))
    async with kit.session(tenant) as s:
        await s.scalar(text("SELECT 1"))
        with pytest.raises(exc.ProgrammingError, match="no_such_function"):
            await s.execute(text("SELECT no_such_function()"))
    async with kit.read(tenant) as s:
        with pytest.raises(exc.ProgrammingError, match="no_such_function"):
            await s.scalar(select(func.no_such_function()))


async def test_savepoints_and_routes_are_right_after_being_led_on(stale, fleet, tenant):
    kit = await stale(elsewhere=True)
    async with kit.begin(tenant) as s:
        assert (await s.scalar(select(Order.note))) == NOTE
        async with s.begin_nested() as point:
            s.add(Order(note="undone"))
            await s.flush()
            await point.rollback()
        async with s.begin_nested():
            s.add(Order(note="new"))
        await s.commit()
        assert sorted(await s.scalars(select(Order.note))) == [NOTE, "new"]
        assert s.route == kit.locate(tenant)
    assert fleet.count(kit, tenant) == 2
