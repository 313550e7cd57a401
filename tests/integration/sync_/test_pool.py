# Generated from tests/integration/async_/test_pool.py by tests/generate_sync.py: change that file instead.
"""The next user of a pooled connection sees nothing of the last one, whatever that one did."""

from __future__ import annotations

import pytest
from fleet import Order
from sqlalchemy import exc, func, select, text

from shardkit.errors import PoolTimeoutError

from .colour import raw_connection

POISONS = {
    "search_path": "SET search_path TO public",
    "search_path behind a comment": "/* of mine */ SET search_path TO public",
    "search_path behind a line comment": "-- of mine\n SET search_path TO public",
    "search_path behind another statement": "SELECT 1; SET search_path TO public",
    "session authorization": "SET SESSION AUTHORIZATION shardkit_app",
    "role": "SET ROLE shardkit_operator",
    "role behind comments": "/* one */ -- two\n SET ROLE shardkit_operator",
    "session role": "SET SESSION ROLE shardkit_operator",
    "role none": "RESET ROLE",
    "tenant": "SELECT set_config('shardkit.tenant', 'victim', false)",
    "tenant in a block": "DO $$ BEGIN PERFORM set_config('shardkit.tenant', 'victim', false); END $$",
    "temporary table": "CREATE TEMP TABLE orders (id bigint)",
    "temporary table by select": "SELECT 1 AS id INTO TEMP orders",
    "temporary table by its schema": "CREATE TABLE pg_temp.orders (id bigint)",
    "temporary view": "CREATE TEMPORARY VIEW orders AS SELECT 1 AS id",
    "advisory lock": "SELECT pg_advisory_lock(7)",
    "shared advisory lock": "SELECT pg_try_advisory_lock_shared(7, 7)",
    "listening": "LISTEN somewhere",
    "cursor": "DECLARE mine CURSOR WITH HOLD FOR SELECT 1",
    "prepared statement": "PREPARE mine AS SELECT 1",
    "time zone": "SET TIME ZONE 'Asia/Tokyo'",
    "row security": "SET row_security = off",
    "read only": "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
}
STATE = """
    SELECT current_user, current_setting('role'), current_setting('TimeZone'), current_setting('row_security'),
        current_setting('default_transaction_read_only'), current_setting('search_path'), current_setting('shardkit.tenant'),
        (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
        (SELECT count(*) FROM pg_listening_channels()),
        (SELECT count(*) FROM pg_cursors WHERE is_holdable),
        (SELECT count(*) FROM pg_prepared_statements WHERE from_sql),
        (SELECT count(*) FROM pg_class WHERE relnamespace = pg_my_temp_schema())
"""


def state(kit, tenant):
    with kit.session(tenant) as s:
        return (s.execute(text(STATE))).one()


@pytest.mark.parametrize("poison", POISONS.values(), ids=POISONS)
@pytest.mark.parametrize("way", ["text", "driver", "cursor"])
def test_a_poisoned_connection_is_not_handed_on(open_kit, tenant, poison, way):
    kit = open_kit(pool_size=1)
    with kit.begin(tenant) as s:
        s.add(Order(note="there"))
    clean = state(kit, tenant)
    try:
        with kit.session(tenant) as s:
            if way == "text":
                s.execute(text(poison.replace(":", r"\:")))
            elif way == "driver":
                (s.connection()).exec_driver_sql(poison)
            else:
                s.scalar(text("SELECT 1"))
                (raw_connection(s)).execute(poison)
            s.commit()
    except exc.DBAPIError:
        pass  # PostgreSQL refused; that is fine too
    assert state(kit, tenant) == clean
    with kit.read(tenant) as s:
        assert (s.scalars(select(Order.note))).all() == ["there"]


def test_a_transaction_left_open_is_not_handed_on(open_kit, tenant):
    kit = open_kit(pool_size=1)
    s = kit.session(tenant)
    s.add(Order(note="never"))
    s.flush()
    s.close()
    with kit.session(tenant) as s:
        assert s.scalar(select(func.count()).select_from(Order)) == 0


def test_a_transaction_ended_by_sql_fails_closed(open_kit, tenant):
    kit = open_kit(pool_size=1)
    with kit.begin(tenant) as s:
        s.add(Order(note="committed"))
    with pytest.raises(exc.DBAPIError):
        with kit.session(tenant) as s:
            s.execute(text("COMMIT"))
            assert (s.execute(text("SELECT * FROM orders"))).all() == []
    assert (state(kit, tenant)).current_user == "shardkit_app"


def test_an_operators_role_does_not_reach_the_next_tenant(open_kit, neighbours):
    kit = open_kit(pool_size=1)
    mine, theirs = neighbours
    for name in neighbours:
        with kit.begin(name) as s:
            s.add(Order(note="note"))
    with kit.shard(kit.locate(mine).shard).session() as s:
        backend = s.scalar(text("SELECT pg_backend_pid()"))
        assert s.scalar(text("SELECT current_user")) == "shardkit_operator"
        s.commit()
        assert s.scalar(text("SELECT current_user")) == "shardkit_operator"
    with kit.session(theirs) as s:
        assert s.scalar(text("SELECT pg_backend_pid()")) == backend
        assert s.scalar(text("SELECT current_user")) == "shardkit_app"
        assert (s.execute(text("SELECT tenant_id FROM orders"))).all() == [(theirs,)]
    with kit.read(mine) as s:
        assert (s.execute(text("SELECT tenant_id FROM orders"))).all() == [(mine,)]


def test_prepared_statements_survive_a_rollback_and_the_pool(open_kit, tenant):
    kit = open_kit(pool_size=1)
    count = text("SELECT count(*) FROM pg_prepared_statements WHERE NOT from_sql")
    for _ in range(3):
        with kit.session(tenant) as s:
            s.scalar(select(Order.note).where(Order.amount == 3))
            s.rollback()
    with kit.session(tenant) as s:
        assert s.scalar(count) >= 2


def test_a_savepoint_rolled_back_leaves_the_next_session_in_order(open_kit, tenant):
    kit = open_kit(pool_size=1)
    for round_ in range(4):
        with kit.begin(tenant) as s:
            with s.begin_nested() as point:
                s.add(Order(note=f"undone {round_}"))
                s.flush()
                point.rollback()
            s.add(Order(note=f"kept {round_}"))
    with kit.session(tenant) as s:
        assert len((s.scalars(select(Order))).all()) == 4


def test_a_first_statement_that_fails_leaves_the_next_session_in_order(open_kit, tenant):
    kit = open_kit(pool_size=1)
    for _ in range(3):
        with kit.session(tenant) as s:
            with pytest.raises(exc.ProgrammingError):
                s.execute(text("SELECT nothing FROM orders WHERE note = :note"), {"note": "x"})
        with kit.read(tenant) as s:
            with pytest.raises(exc.DataError):
                s.scalar(select(func.round(1 / func.length(func.lower("")))))
        with kit.session(tenant) as s:
            assert s.scalar(select(func.count()).select_from(Order)) == 0


def test_a_changed_table_heals(open_kit, fleet, tenant):
    kit = open_kit(pool_size=1)
    route = kit.locate(tenant)
    everything = text("SELECT * FROM people WHERE id > :least")
    with fleet.admin(route.server) as admin:
        for column in ("one", "two"):
            for _ in range(3):
                with kit.session(tenant) as s:
                    s.execute(everything, {"least": 0})
            admin.execute(f"ALTER TABLE {route.schema}.people ADD COLUMN {column} int")
            for _ in range(2):
                try:
                    with kit.session(tenant) as s:
                        s.execute(everything, {"least": 0})
                except exc.NotSupportedError:
                    continue
                break
            else:
                pytest.fail("the stale plan stayed in the pool")


def test_a_table_changed_meanwhile_is_not_noticed_by_a_first_statement(open_kit, fleet, tenant):
    kit = open_kit(pool_size=1)
    route = kit.locate(tenant)
    with fleet.admin(route.server) as admin:
        for number, way in enumerate((kit.session, kit.read, kit.session)):
            for _ in range(3):
                with way(tenant) as s:
                    s.scalars(select(Order.note))
                    backend = s.scalar(text("SELECT pg_backend_pid()"))
            admin.execute(f"ALTER TABLE {route.schema}.orders ALTER COLUMN note TYPE varchar({500 + number})")
            for _ in range(2):
                with way(tenant) as s:
                    assert (s.scalars(select(Order.note))).all() == []
                    assert s.scalar(text("SELECT pg_backend_pid()")) == backend  # the connection is kept


def test_a_table_changed_in_the_middle_is_an_error_once(open_kit, fleet, tenant):
    kit = open_kit(pool_size=1)
    route = kit.locate(tenant)
    with fleet.admin(route.server) as admin:
        with kit.session(tenant) as s:
            for _ in range(3):  # until it is prepared
                s.scalars(select(Order.note))
                s.rollback()
            s.scalar(text("SELECT 1"))
            admin.execute(f"ALTER TABLE {route.schema}.orders ALTER COLUMN note TYPE varchar(400)")
            with pytest.raises(exc.NotSupportedError):
                s.scalars(select(Order.note))
            s.rollback()
            assert (s.scalars(select(Order.note))).all() == []


def test_what_postgresql_does_not_support_is_said_once(kit, tenant):
    with kit.session(tenant) as s:
        with pytest.raises(exc.NotSupportedError, match="FOR UPDATE"):
            s.execute(text("SELECT count(*) FROM orders FOR UPDATE"))
        s.rollback()
        assert (s.scalars(select(Order.note))).all() == []


def test_connections_to_a_servers_old_address_end_with_their_work(open_kit, fleet, tenant, eventually):
    kit = open_kit(application_name=tenant, pool_size=2)
    server = kit.locate(tenant).server
    backend = text("SELECT pg_backend_pid()")
    mine = "SELECT pid FROM pg_stat_activity WHERE application_name = %s AND datname = current_database()"
    held = kit.session(tenant)
    at_work = held.scalar(backend)
    with kit.session(tenant) as s:
        assert s.scalar(backend) != at_work  # idle from now on
    kit.fan_out(select(func.count(Order.id)))
    with fleet.admin(server) as there:

        def alive():
            return {pid for (pid,) in there.execute(mine, (tenant,))}

        assert len(alive()) == 3
        with fleet.at_another_address(server):
            kit.refresh()
            eventually(lambda: alive() == {at_work})
            with kit.session(tenant) as s:
                assert (raw_connection(s)).info.host == "localhost"
            held.close()
            eventually(lambda: len(alive()) == 1 and at_work not in alive())
        kit.refresh()
        eventually(lambda: not alive())
    with kit.session(tenant) as s:
        assert (raw_connection(s)).info.host == "127.0.0.1"


def test_a_spent_budget_is_a_typed_error_and_stays_on_its_server(open_kit, fleet):
    kit = open_kit(pool_size=2, pool_timeout_s=0.2)
    names = [f"budget {number}" for number in range(200)]
    here = [name for name in names if kit.locate(name).server == "pg1"]
    there = next(name for name in names if kit.locate(name).server == "pg2")
    with kit.session(here[0]) as one, kit.session(here[1]) as two:
        one.scalar(text("SELECT 1"))
        two.scalar(text("SELECT 1"))
        with pytest.raises(PoolTimeoutError, match="'pg1'") as caught:
            with kit.session(here[2]) as three:
                three.scalar(text("SELECT 1"))
        assert caught.value.retryable
        with kit.session(there) as s:
            assert s.scalar(text("SELECT 1")) == 1
    with kit.session(here[2]) as s:
        assert s.scalar(text("SELECT 1")) == 1
