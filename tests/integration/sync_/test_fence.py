# Generated from tests/integration/async_/test_fence.py by tests/generate_sync.py: change that file instead.
"""A program with an old map is led on before it has done anything, and told when it has; it never writes to a closed copy."""

from __future__ import annotations

import threading

import pytest
from fleet import Line, Order
from sqlalchemy import exc, func, insert, select, text

from shardkit.core.names import schema_name
from shardkit.errors import Outcome, ShardMovedError

NOTE = "before the move"


def add_order(s):
    s.add(Order(note="new"))
    s.flush()


def add_family(s):
    s.add(Order(note="new", lines=[Line(what="a"), Line(what="b")]))
    s.flush()


def core_insert(s):
    s.execute(Order.__table__.insert().values(note="new"))


def raw_insert(s):
    s.execute(text("INSERT INTO orders (note) VALUES ('new')"))


def raw_insert_with_parameters(s):
    s.execute(text("INSERT INTO orders (note) VALUES (:note)"), {"note": "new"})


def raw_executemany(s):
    s.execute(text("INSERT INTO orders (note) VALUES (:note)"), [{"note": "new"}, {"note": "new too"}])


def bulk_insert(s):
    s.execute(insert(Order), [{"note": "new"}, *({"note": f"new {number}"} for number in range(100))])


def bulk_insert_in_batches(s):
    rows = [{"note": "new"}, *({"note": f"new {number}"} for number in range(2500))]
    found = s.scalars(insert(Order).returning(Order.id), rows)
    assert len(set(found)) == 2501


def insert_in_a_savepoint_after_a_read(s):
    assert (s.scalar(select(Order.note))) == NOTE
    with s.begin_nested():
        add_family(s)


def insert_over_the_connection(s):
    connection = s.connection()
    connection.execute(insert(Order), {"note": "new"})


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

    def make(*, elsewhere, **given):
        kit = open_kit(**given)
        kit.refresh()
        with kit.begin(tenant) as s:
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
def test_a_first_write_is_led_on(stale, fleet, tenant, write, elsewhere, pool_size):
    kit = stale(elsewhere=elsewhere, pool_size=pool_size)
    before = kit.locate(tenant)
    with kit.begin(tenant) as s:
        write(s)
        assert s.route.epoch == before.epoch + 1
        assert s.scalar(text("SHOW search_path")) == schema_name(before.shard, before.epoch + 1)
        assert s.scalar(select(func.count()).select_from(Order).where(Order.note == "new")) == 1
    assert fleet.count(kit, tenant, "note = 'new'") == 1
    with kit.begin(tenant) as s:  # and the pool is in order
        assert s.scalar(select(func.count()).select_from(Order).where(Order.note == NOTE)) == 1


@pytest.mark.parametrize("elsewhere", [False, True], ids=["renamed", "moved"])
def test_a_first_read_is_led_on(stale, tenant, elsewhere):
    kit = stale(elsewhere=elsewhere, pool_size=1)
    with kit.read(tenant) as s:
        order = (s.scalars(select(Order))).one()
        assert order.note == NOTE
        assert (s.scalars(select(Order.note))).all() == [NOTE]
    with kit.read(tenant) as s:
        assert (s.get(Order, order.id)).note == NOTE


@pytest.mark.parametrize("elsewhere", [False, True], ids=["renamed", "moved"])
def test_a_get_is_led_on(stale, tenant, elsewhere, kit):
    kit = stale(elsewhere=elsewhere, pool_size=1)
    with kit.session(tenant) as s:
        assert s.get(Order, 1) is None
        assert (s.scalars(select(Order.note))).all() == [NOTE]


def test_the_isolation_level_is_led_on_too(stale, tenant):
    kit = stale(elsewhere=True)
    with kit.session(tenant) as s:
        s.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        assert (s.scalars(select(Order.note))).all() == [NOTE]
        assert s.scalar(text("SHOW transaction_isolation")) == "repeatable read"


def test_an_operator_is_led_on(stale, tenant):
    kit = stale(elsewhere=True)
    with kit.shard(kit.locate(tenant).shard).session() as s:
        assert NOTE in (s.scalars(select(Order.note).where(Order.tenant_id == tenant))).all()
        assert s.scalar(text("SELECT current_user")) == "shardkit_operator"


def test_a_server_side_cursor_is_led_on_or_told(stale, tenant):
    kit = stale(elsewhere=True)
    with pytest.raises(ShardMovedError) as caught:
        with kit.session(tenant) as s:
            [note for note in s.scalars(select(Order.note).execution_options(yield_per=5))]
    assert (caught.value.outcome, caught.value.retryable) == (Outcome.NOT_DONE, True)


@pytest.mark.parametrize("elsewhere", [False, True], ids=["renamed", "moved"])
def test_a_map_that_flips_later_is_waited_for(open_kit, fleet, tenant, elsewhere):
    kit = open_kit(move_wait_s=30.0)
    with kit.begin(tenant) as s:
        s.add(Order(note=NOTE))
    route = kit.locate(tenant)
    target = fleet.other(route.server) if elsewhere else route.server
    if elsewhere:
        fleet.copy(route, target)
    fleet.close_epoch(route)
    flipper = threading.Timer(0.5, fleet.flip, [route], {"server": target})
    flipper.start()
    try:
        with kit.begin(tenant) as s:
            assert (s.scalars(select(Order.note))).all() == [NOTE]
            assert s.route.epoch == route.epoch + 1
    finally:
        flipper.join()


def test_a_map_that_never_flips_is_given_up(open_kit, fleet, tenant):
    kit = open_kit(move_wait_s=0.2)
    with kit.begin(tenant) as s:
        s.add(Order(note=NOTE))
    route = kit.locate(tenant)
    fleet.close_epoch(route)
    try:
        with pytest.raises(ShardMovedError, match="being moved") as caught:
            with kit.begin(tenant) as s:
                add_order(s)
        assert (caught.value.outcome, caught.value.retryable) == (Outcome.NOT_DONE, True)
    finally:
        fleet.flip(route)
    with kit.begin(tenant) as s:
        assert (s.scalars(select(Order.note))).all() == [NOTE]


@pytest.mark.parametrize("elsewhere", [False, True], ids=["renamed", "moved"])
def test_in_the_middle_of_a_transaction_it_is_an_error_and_nothing_is_written(open_kit, fleet, tenant, elsewhere):
    kit = open_kit()
    with kit.begin(tenant) as s:
        s.add(Order(note=NOTE))
    route = kit.locate(tenant)
    with pytest.raises(ShardMovedError) as caught:
        with kit.begin(tenant) as s:
            assert s.scalar(text("SELECT 1")) == 1  # holds no lock that a fence waits for
            fleet.move(route, elsewhere=elsewhere)
            add_order(s)
    assert (caught.value.outcome, caught.value.retryable) == (Outcome.NOT_DONE, True)
    assert fleet.count(kit, tenant, "note = 'new'") == 0
    with kit.begin(tenant) as s:
        assert (s.scalars(select(Order.note))).all() == [NOTE]


def test_run_hides_a_move(open_kit, fleet, tenant):
    kit = open_kit()
    with kit.begin(tenant) as s:
        s.add(Order(note=NOTE))
    route = kit.locate(tenant)
    calls = []

    def work(s):
        calls.append(s.scalar(text("SELECT 1")))
        if len(calls) == 1:
            fleet.move(route, elsewhere=True)
        add_family(s)
        return s.route.epoch

    assert kit.run(tenant, work) == route.epoch + 1
    assert calls == [1, 1]
    assert fleet.count(kit, tenant, "note = 'new'") == 1


def test_a_table_that_does_not_exist_is_the_programs_own_error(kit, tenant):
    with kit.session(tenant) as s:
        with pytest.raises(exc.ProgrammingError, match="no_such_table"):
            s.execute(text("SELECT * FROM no_such_table"))
    with kit.session(tenant) as s:
        s.scalar(text("SELECT 1"))
        with pytest.raises(exc.ProgrammingError, match="no_such_function"):
            s.execute(text("SELECT no_such_function()"))
    with kit.read(tenant) as s:
        with pytest.raises(exc.ProgrammingError, match="no_such_function"):
            s.scalar(select(func.no_such_function()))


def test_savepoints_and_routes_are_right_after_being_led_on(stale, fleet, tenant):
    kit = stale(elsewhere=True)
    with kit.begin(tenant) as s:
        assert (s.scalar(select(Order.note))) == NOTE
        with s.begin_nested() as point:
            s.add(Order(note="undone"))
            s.flush()
            point.rollback()
        with s.begin_nested():
            s.add(Order(note="new"))
        s.commit()
        assert sorted(s.scalars(select(Order.note))) == [NOTE, "new"]
        assert s.route == kit.locate(tenant)
    assert fleet.count(kit, tenant) == 2
