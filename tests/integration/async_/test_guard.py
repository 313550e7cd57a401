"""Tenants share a shard and do not see each other: not through the ORM, not through SQL that forgets the WHERE."""

from __future__ import annotations

import pytest
from fleet import Clerk, Line, Order, Person
from sqlalchemy import delete, exc, exists, func, insert, select, text, union_all, update
from sqlalchemy.orm import aliased, joinedload, selectinload, subqueryload

from shardkit.errors import TenantMismatchError

from .colour import raw_connection, run_sync

ORDERS = Order.__table__


@pytest.fixture
def pair(kit, neighbours):
    """``await pair()``: two tenants of one shard with two orders and two lines each, and the ids of the second's orders."""

    async def make():
        ids = []
        for name in neighbours:
            async with kit.begin(name) as s:
                orders = [Order(note=f"{n}", amount=n, lines=[Line(what=f"{name} {n}")]) for n in range(2)]
                s.add_all(orders)
                await s.flush()
                ids.append([order.id for order in orders])
        return *neighbours, ids[0], ids[1]

    return make


def count(entity=Order):
    return select(func.count()).select_from(entity)


RAW_ONLY = {
    "text": (text("SELECT count(*) FROM orders"), 2),
    "core": (select(func.count()).select_from(ORDERS), 2),
    "union": (select(func.count()).select_from(union_all(select(ORDERS.c.id), select(Line.__table__.c.id)).subquery()), 4),
}
ALIAS, LINES = aliased(Order), aliased(Line)
QUERIES = {
    "count": (count(), 2),
    "count of a column": (select(func.count(Order.id)), 2),
    "alias": (count(ALIAS), 2),
    "join": (select(func.count()).select_from(Order).join(Order.lines), 2),
    "join on a condition": (select(func.count()).select_from(Order).join(Line, Line.order_id != Order.id), 2),
    "outer join": (select(func.count(Line.id)).select_from(Order).outerjoin(Line, Line.order_id != Order.id), 2),
    "aliased join": (select(func.count()).select_from(Order).join(LINES, LINES.order_id != Order.id), 2),
    "subquery": (select(func.count()).select_from(select(Order.id).subquery()), 2),
    "common table expression": (select(func.count()).select_from(select(Order.id).cte()), 2),
    "scalar subquery": (select(select(func.count(Order.id)).scalar_subquery()), 2),
    "in subquery": (count().where(Order.id.in_(select(Line.order_id))), 2),
    "exists": (select(func.count()).where(exists(select(Order.id).where(Order.amount >= 0))), 1),
    "union": (select(func.count()).select_from(union_all(select(Order.id), select(Line.id)).subquery()), 4),
    "single-table inheritance": (count(Clerk), 0),
    "relationship condition": (count().where(Order.lines.any()), 2),
}


@pytest.mark.parametrize("name", [*QUERIES, *(f"raw {name}" for name in RAW_ONLY)])
async def test_every_query_sees_the_tenants_rows_only(kit, pair, name):
    mine, *_ = await pair()
    statement, expected = RAW_ONLY[name[4:]] if name.startswith("raw ") else QUERIES[name]
    for session in (kit.session(mine), kit.read(mine)):
        async with session as s:
            assert await s.scalar(statement) == expected


@pytest.mark.parametrize("name", QUERIES)
async def test_the_orm_filters_by_itself_where_a_table_lost_its_policy(kit, fleet, pair, name):
    mine, theirs, *_ = await pair()
    statement, expected = QUERIES[name]
    route = kit.locate(mine)
    with fleet.admin(route.server) as admin:
        for table in ("orders", "lines", "people"):
            admin.execute(f"ALTER TABLE {route.schema}.{table} DISABLE ROW LEVEL SECURITY")
        try:
            async with kit.session(mine) as s:
                assert await s.scalar(statement) == expected
                assert await s.scalar(text("SELECT count(*) FROM orders")) > 2  # the policy is really off
        finally:
            for table in ("orders", "lines", "people"):
                admin.execute(f"ALTER TABLE {route.schema}.{table} ENABLE ROW LEVEL SECURITY")


@pytest.mark.parametrize("load", [selectinload, joinedload, subqueryload], ids=lambda load: load.__name__)
async def test_eager_loading_brings_the_tenants_rows_only(kit, fleet, pair, load):
    mine, theirs, ids, other = await pair()
    route = kit.locate(mine)
    with fleet.admin(route.server) as admin:  # a foreign line under an order of mine, as only an administrator can make it
        admin.execute(
            f"INSERT INTO {route.schema}.lines (id, order_id, what, tenant_id) VALUES (%s, %s, 'foreign', %s)",
            (ids[0] << 1, ids[0], theirs),
        )
    async with kit.session(mine) as s:
        orders = (await s.scalars(select(Order).options(load(Order.lines)).order_by(Order.id))).unique().all()
        assert [[line.tenant_id for line in order.lines] for order in orders] == [[mine], [mine]]
        order = await s.get(Order, ids[0], populate_existing=True)
        assert [line.what for line in await run_sync(s, lambda _: order.lines)] == [f"{mine} 0"]


async def test_get_refresh_and_merge_do_not_reach_another_tenant(kit, pair):
    mine, theirs, ids, other = await pair()
    for session in (kit.session(mine), kit.read(mine)):
        async with session as s:
            assert await s.get(Order, other[0]) is None
            assert (await s.get(Order, ids[0])).tenant_id == mine
    with pytest.raises(exc.IntegrityError):
        async with kit.begin(mine) as s:
            await s.merge(Order(id=other[0], note="stolen"))
    async with kit.session(theirs) as s:
        assert (await s.get(Order, other[0])).note == "0"


async def test_query_of_old_reads_updates_and_deletes_own_rows_only(kit, fleet, pair):
    mine, theirs, ids, other = await pair()

    def work(s):
        assert s.query(Order).count() == 2
        assert s.query(Order).filter(Order.id.in_(ids + other)).count() == 2
        assert s.query(Order).update({"amount": 9}) == 2
        assert s.query(Line).delete() == 2

    async with kit.begin(mine) as s:
        await run_sync(s, work)
    assert fleet.count(kit, mine, "amount = 9") == 2
    assert fleet.count(kit, theirs, "amount < 2") == 2


@pytest.mark.parametrize(
    "statement",
    [
        text("UPDATE orders SET amount = 77"),
        ORDERS.update().values(amount=77),
        update(Order).values(amount=77),
        update(Order).values(amount=77).execution_options(synchronize_session=False),
    ],
    ids=["text", "core", "orm", "orm without synchronisation"],
)
async def test_an_update_without_where_touches_own_rows_only(kit, fleet, pair, statement):
    mine, theirs, *_ = await pair()
    async with kit.begin(mine) as s:
        assert (await s.execute(statement)).rowcount == 2
    assert (fleet.count(kit, mine, "amount = 77"), fleet.count(kit, theirs, "amount = 77")) == (2, 0)


async def test_an_update_by_foreign_key_values_changes_nothing(kit, fleet, pair):
    mine, theirs, ids, other = await pair()
    with pytest.raises(exc.SQLAlchemyError):  # SQLAlchemy counts the rows
        async with kit.begin(mine) as s:
            await s.execute(update(Order), [{"id": other[0], "amount": 77}])
            await s.commit()
    assert fleet.count(kit, theirs, "amount = 77") == 0


@pytest.mark.parametrize(
    "statement", [text("DELETE FROM lines"), Line.__table__.delete(), delete(Line)], ids=["text", "core", "orm"]
)
async def test_a_delete_without_where_touches_own_rows_only(kit, pair, statement):
    mine, theirs, *_ = await pair()
    async with kit.begin(mine) as s:
        assert (await s.execute(statement)).rowcount == 2
    async with kit.session(theirs) as s:
        assert await s.scalar(count(Line)) == 2


async def test_a_foreign_object_is_refused_by_the_session(kit, fleet, pair):
    mine, theirs, *_ = await pair()
    with pytest.raises(TenantMismatchError):
        async with kit.begin(mine) as s:
            s.add(Order(note="foreign", tenant_id=theirs))
    with pytest.raises(exc.ProgrammingError, match="row-level security"):
        async with kit.begin(mine) as s:
            (await s.scalars(select(Order).limit(1))).one().tenant_id = theirs
    with pytest.raises(TenantMismatchError):
        async with kit.shard(kit.locate(mine).shard).begin() as s:
            s.add(Order(note="nobody's"))
    assert fleet.count(kit, theirs) == 2


@pytest.mark.parametrize(
    "make",
    [
        lambda tenant: (text("INSERT INTO orders (note, tenant_id) VALUES ('x', :t)"), {"t": tenant}),
        lambda tenant: (ORDERS.insert().values(note="x", tenant_id=tenant), None),
        lambda tenant: (insert(Order), [{"note": "x", "tenant_id": tenant}, {"note": "y", "tenant_id": tenant}]),
        lambda tenant: (text("UPDATE orders SET tenant_id = :t"), {"t": tenant}),
        lambda tenant: (update(Order).values(tenant_id=tenant), None),
    ],
    ids=["text", "core", "bulk", "text update", "orm update"],
)
async def test_rows_cannot_be_given_to_another_tenant_by_statement(kit, fleet, pair, make):
    mine, theirs, *_ = await pair()
    with pytest.raises((exc.ProgrammingError, TenantMismatchError)):
        async with kit.begin(mine) as s:
            await s.execute(*make(theirs))
    assert fleet.count(kit, theirs) == 2


async def test_bulk_save_fills_the_tenant_and_refuses_another(kit, fleet, pair):
    mine, theirs, *_ = await pair()
    async with kit.begin(mine) as s:
        await run_sync(s, lambda s: s.bulk_save_objects([Order(note="a"), Order(note="b")]))
    assert fleet.count(kit, mine) == 4
    with pytest.raises((exc.ProgrammingError, TenantMismatchError)):
        async with kit.begin(mine) as s:
            await run_sync(s, lambda s: s.bulk_save_objects([Order(note="c", tenant_id=theirs)]))
    assert fleet.count(kit, theirs) == 2


async def test_unique_keys_are_unique_within_a_tenant(kit, fleet, pair):
    mine, *_ = await pair()  # both tenants have the notes 0 and 1
    with pytest.raises(exc.IntegrityError):
        async with kit.begin(mine) as s:
            s.add(Order(note="0"))
    route = kit.locate(mine)
    with fleet.admin(route.server) as admin:
        keys = admin.execute(
            """SELECT indexrelid::regclass::text, indisprimary, (SELECT attname FROM pg_attribute
                   WHERE attrelid = indrelid AND attnum = indkey[0])
               FROM pg_index WHERE indrelid = %s::regclass""",
            (f"{route.schema}.orders",),
        ).fetchall()
    assert len(keys) == 4
    assert {column for _, primary, column in keys if not primary} == {"tenant_id"}


async def test_after_the_transaction_the_tenant_is_gone_and_the_policy_fails_closed(open_kit, fleet, tenant):
    kit = open_kit(pool_size=1)
    async with kit.begin(tenant) as s:
        s.add(Order(note="mine"))
    async with kit.session(tenant) as s:
        await s.scalar(text("SELECT 1"))
        raw = await raw_connection(s)
        await raw.rollback()
        assert await (await raw.execute("SELECT current_setting('shardkit.tenant')")).fetchone() == ("",)
        found = await (await raw.execute(f"SELECT count(*) FROM {s.route.schema}.orders")).fetchone()
        assert found == (0,)


async def test_a_savepoint_restores_the_tenant(kit, tenant):
    async with kit.session(tenant) as s:
        async with s.begin_nested() as point:
            await s.execute(text("SELECT set_config('shardkit.tenant', 'another', true)"))
            await point.rollback()
        assert await s.scalar(text("SELECT current_setting('shardkit.tenant')")) == tenant


async def test_a_session_stays_its_tenants_whatever_block_one_stands_in(kit, neighbours):
    """The tenant is switched while a session is open: the session is not."""
    mine, theirs = neighbours
    with kit.tenant(mine):
        async with kit.session() as s:
            s.add(Order(note="first"))
            with kit.tenant(theirs):
                s.add(Order(note="second"))
                await s.flush()
                assert {order.tenant_id for order in await s.scalars(select(Order))} == {mine}
                async with kit.begin() as inner:
                    inner.add(Order(note="theirs"))
                await s.commit()
            assert s.tenant == mine
            with pytest.raises(AttributeError):
                s.tenant = theirs
            assert sorted(await s.scalars(select(Order.note))) == ["first", "second"]
    assert await notes_of(kit, theirs) == ["theirs"]


async def test_nested_blocks_of_two_tenants_are_two_units_of_work(kit, neighbours):
    mine, theirs = neighbours
    with pytest.raises(ZeroDivisionError):
        async with kit.begin(mine) as outer:
            outer.add(Order(note="undone"))
            await outer.flush()
            async with kit.begin(theirs) as inner:
                inner.add(Order(note="kept"))
            assert [order.tenant_id for order in await outer.scalars(select(Order))] == [mine]
            1 / 0  # noqa: B018  the outer one fails
    assert await notes_of(kit, mine) == []
    assert await notes_of(kit, theirs) == ["kept"]


async def test_the_tenant_of_a_transaction_switched_by_sql_gives_the_orm_no_strangers_row(kit, pair):
    """Row-level security believes the setting, so SQL that sets it is the program's own; the ORM's filter does not."""
    mine, theirs = (await pair())[:2]
    async with kit.session(mine) as s:
        await s.execute(text("SELECT set_config('shardkit.tenant', :tenant, true)"), {"tenant": theirs})
        assert {order.tenant_id for order in await s.scalars(select(Order))} <= {mine}
        await s.rollback()
        assert await s.scalar(text("SELECT current_setting('shardkit.tenant')")) == mine


async def test_set_local_in_a_read_only_session_is_not_void(kit, tenant):
    """Outside a transaction it would be, silently: so SQL text begins one."""
    async with kit.read(tenant) as s:
        await s.scalars(select(Order))  # no transaction yet
        await s.execute(text("SET LOCAL statement_timeout TO '7s'"))
        assert await s.scalar(text("SHOW statement_timeout")) == "7s"
        assert (await s.scalars(select(Order))).all() == []
        assert await s.scalar(text("SHOW transaction_read_only")) == "on"
    async with kit.read(tenant) as s:
        assert await s.scalar(text("SHOW statement_timeout")) != "7s"


async def notes_of(kit, tenant):
    async with kit.session(tenant) as s:
        return sorted(await s.scalars(select(Order.note)))


async def test_application_sessions_have_the_least_role(kit, tenant):
    async with kit.session(tenant) as s:
        row = (
            await s.execute(
                text(
                    """SELECT current_user, rolsuper OR rolbypassrls OR rolcreatedb OR rolcreaterole,
                        has_schema_privilege(current_schema, 'CREATE'), has_schema_privilege('public', 'CREATE'),
                        row_security_active('orders'), pg_get_userbyid(relowner)
                    FROM pg_roles, pg_class WHERE rolname = current_user AND pg_class.oid = 'orders'::regclass"""
                )
            )
        ).one()
    assert tuple(row[:5]) == ("shardkit_app", False, False, False, True)
    assert row[5] not in ("shardkit_app", "shardkit_operator")


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE mine (id int)",
        "ALTER TABLE orders DISABLE ROW LEVEL SECURITY",
        "DROP POLICY shardkit_tenant ON orders",
        "TRUNCATE orders",
        "UPDATE shardkit.identity SET cluster_id = gen_random_uuid()",
        "SELECT shardkit.protect('orders')",
        "CREATE SCHEMA mine",
    ],
)
async def test_application_sessions_cannot_change_the_walls(kit, tenant, statement):
    with pytest.raises(exc.ProgrammingError):
        async with kit.begin(tenant) as s:
            await s.execute(text(statement))


async def test_row_security_cannot_be_passed_by_switching_it_off(kit, pair):
    mine, *_ = await pair()
    with pytest.raises(exc.ProgrammingError, match="row-level security"):
        async with kit.session(mine) as s:
            await s.execute(text("SET LOCAL row_security = off"))
            await s.execute(text("SELECT * FROM orders"))


async def test_a_view_respects_the_policy_only_as_security_invoker(kit, fleet, pair):
    mine, *_ = await pair()
    route = kit.locate(mine)
    with fleet.admin(route.server) as admin:
        admin.execute(
            f"CREATE OR REPLACE VIEW {route.schema}.safe WITH (security_invoker) AS SELECT * FROM {route.schema}.orders"
        )
        admin.execute(f"GRANT SELECT ON {route.schema}.safe TO shardkit_app")
    async with kit.session(mine) as s:
        assert await s.scalar(text("SELECT count(*) FROM safe")) == 2


async def test_single_table_inheritance_is_scoped(kit, neighbours):
    for name in neighbours:
        async with kit.begin(name) as s:
            s.add_all([Clerk(desk="a"), Person()])
    async with kit.session(neighbours[0]) as s:
        assert await s.scalar(count(Clerk)) == 1
        assert sorted(type(person).__name__ for person in await s.scalars(select(Person))) == ["Clerk", "Person"]
        assert {person.tenant_id for person in await s.scalars(select(Person))} == {neighbours[0]}
