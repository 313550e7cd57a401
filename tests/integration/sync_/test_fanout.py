# Generated from tests/integration/async_/test_fanout.py by tests/generate_sync.py: change that file instead.
"""A fan-out gives the whole answer, or says what each shard said; nothing in between is taken for it."""

from __future__ import annotations

import pytest
from fleet import Clerk, Line, Order, Person
from psycopg import sql
from sqlalchemy import Column, MetaData, Table, Text, exc, func, literal, select, text
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.orm import selectinload

from shardkit.core.names import REFERENCE_SCHEMA
from shardkit.errors import (
    DeadlineError,
    FanOutError,
    FanOutRefusedError,
    NoTenantError,
    ReadOnlyError,
    ResultTooLargeError,
    SettingsError,
    UnknownShardError,
)

country = Table("countries", MetaData(schema=REFERENCE_SCHEMA), Column("code", Text))
elsewhere = Table("elsewhere", MetaData(schema="elsewhere"), Column("code", Text))


def filled(kit, mark, *, tenants=20):
    """Three orders for each of *tenants* tenants, told apart from other tests' by *mark*."""
    names = [f"{mark}-{number}" for number in range(tenants)]
    for number, name in enumerate(names):
        with kit.begin(name) as s:
            s.add_all([Order(note=f"{mark} {n}", amount=number * 10 + n, lines=[Line(what="x")]) for n in range(3)])
    return names


def mine(mark):
    return Order.note.startswith(f"{mark} ")


def test_rows_carry_their_shard_and_objects_are_bound_to_it(kit, tenant):
    filled(kit, tenant)
    found = kit.fan_out(select(Order).where(mine(tenant)).order_by(Order.amount.desc()).limit(7))
    assert [order.amount for order in found.scalars()] == [192, 191, 190, 182, 181, 180, 172]
    assert found.shards == [kit.locate(order.tenant_id).shard for order in found.scalars()]
    assert not found.partial
    assert len(found) == 7
    assert found[0][0] is found.scalars()[0]


def test_reference_tables_are_joined_on_every_server(fleet, kit, tenant):
    filled(kit, tenant, tenants=4)
    for server in fleet.servers:
        with fleet.admin(server) as connection:
            schema = sql.Identifier(REFERENCE_SCHEMA)
            connection.execute(
                sql.SQL(
                    "CREATE SCHEMA IF NOT EXISTS {0}; CREATE TABLE IF NOT EXISTS {0}.countries (code text);"
                    "GRANT USAGE ON SCHEMA {0} TO shardkit_operator;"
                    "TRUNCATE {0}.countries; INSERT INTO {0}.countries VALUES ('x')"
                ).format(schema)
            )
    lines = select(func.count()).select_from(Line).join(country, country.c.code == Line.what).join(Line.order)
    assert kit.fan_out_scalar(lines.where(mine(tenant))) == 12


def test_related_objects_are_loaded_with_the_rows(kit, tenant):
    filled(kit, tenant, tenants=3)
    found = kit.fan_out(select(Order).where(mine(tenant)).options(selectinload(Order.lines)))
    assert [[line.what for line in order.lines] for order in found.scalars()] == [["x"]] * 9


def test_objects_of_a_hierarchy_come_back_as_what_they_are(kit, tenant):
    with kit.begin(tenant) as s:
        s.add_all([Person(), Clerk(desk=tenant)])
    found = (kit.fan_out(select(Person), tenants=[tenant])).scalars()
    assert sorted((type(person).__name__, person.tenant_id) for person in found) == [("Clerk", tenant), ("Person", tenant)]


def test_bound_objects_cannot_be_written(kit, tenant):
    filled(kit, tenant, tenants=1)
    order = (kit.fan_out(select(Order).where(mine(tenant)).limit(1))).scalars()[0]
    order.amount = 1_000_000
    with pytest.raises(ReadOnlyError):
        order._sa_instance_state.session.flush()


def test_tenants_are_filtered_and_only_their_shards_asked(kit, tenant):
    names = filled(kit, tenant)
    found = kit.fan_out(select(Order.tenant_id, func.count()).group_by(Order.tenant_id), tenants=names[:2])
    assert sorted(map(tuple, found)) == [(names[0], 3), (names[1], 3)]
    having_lines = select(func.count(Order.id)).where(Order.lines.any(Line.what == "x"))
    assert kit.fan_out_scalar(having_lines, tenants=names[:2]) == 6
    assert kit.fan_out_scalar(select(func.count(Line.id)).join(Line.order), tenants=names[:3]) == 9
    with pytest.raises(FanOutRefusedError, match="each part a WHERE"):
        kit.fan_out(select(Order.id).union_all(select(Line.id)), tenants=names[:2])
    with pytest.raises(FanOutRefusedError, match="without its model"):
        kit.fan_out(select(Order.__table__.c.id), tenants=names[:2])


def test_chosen_shards_are_asked(kit, tenant):
    names = filled(kit, tenant)
    shard = kit.locate(names[0]).shard
    expected = 3 * sum(kit.locate(name).shard == shard for name in names)
    assert kit.fan_out_scalar(select(func.count(Order.id)).where(mine(tenant)), shards=[shard]) == expected
    assert len(kit.fan_out(select(Order.id).where(mine(tenant)), shards=[])) == 0
    assert kit.fan_out_scalar(select(func.count(Order.id)), shards=[]) == 0
    with pytest.raises(UnknownShardError):
        kit.fan_out(select(Order.id), shards=[4711])


def test_scalars_are_merged_or_reduced(kit, tenant):
    filled(kit, tenant, tenants=5)
    count = select(func.count()).select_from(Order).where(mine(tenant))
    assert kit.fan_out_scalar(count) == 15
    assert kit.fan_out_scalar(count, reduce=sum) == 15
    assert sum(kit.fan_out_scalar(count, reduce=list)) == 15
    largest = select(func.string_agg(Order.note, ",")).where(mine(tenant))
    assert sum(part.count(",") + 1 for part in kit.fan_out_scalar(largest, reduce=list)) == 15


def test_parameters_are_those_of_the_call_not_of_the_first_one(kit, tenant):
    filled(kit, tenant, tenants=4)
    for least in (10, 20, 30):
        total = select(func.coalesce(func.sum(Order.amount), -least)).where(mine(tenant), Order.amount >= least)
        assert kit.fan_out_scalar(total) == sum(a * 10 + n for a in range(4) for n in range(3) if a * 10 + n >= least)
        nothing = select(func.coalesce(func.sum(Order.amount), -least)).where(Order.note == f"no {least}")
        assert kit.fan_out_scalar(nothing) == -least
    some = select(func.count(Order.id)).where(mine(tenant), Order.amount.in_([0, 1, 10]))
    assert kit.fan_out_scalar(some) == 3
    assert kit.fan_out_scalar(select(func.count(Order.id)).where(mine(tenant), Order.amount.in_([0]))) == 1


def test_a_moved_shard_is_asked_where_it_went(fleet, open_kit, tenant):
    kit = open_kit()
    names = filled(kit, tenant)
    count = select(func.count(Order.id)).where(mine(tenant))
    assert kit.fan_out_scalar(count) == 60
    for name, elsewhere in zip(names[:2], (True, False), strict=True):
        fleet.move(fleet.map.route(kit.locate(name).shard)._replace(**kit.locate(name)._asdict()), elsewhere=elsewhere)
        assert kit.fan_out_scalar(count) == 60


def test_a_shard_nobody_can_find_is_an_error_and_a_part_has_to_be_asked_for(fleet, open_kit, tenant):
    kit = open_kit(move_wait_s=0.2)
    names = filled(kit, tenant)
    route = kit.locate(names[0])
    lost = 3 * sum(kit.locate(name).shard == route.shard for name in names)
    fleet.close_epoch(route, epoch=route.epoch + 1)
    try:
        with pytest.raises(FanOutError) as caught:
            kit.fan_out(select(Order.id).where(mine(tenant)))
        assert set(caught.value.failures) == {route.shard}
        found = kit.fan_out(select(Order.id).where(mine(tenant)), on_error="partial")
        assert (found.partial, set(found.failures), len(found)) == (True, {route.shard}, 60 - lost)
    finally:
        fleet.flip(route)


def test_what_one_shard_says_names_that_shard(fleet, kit, tenant):
    names = filled(kit, tenant)
    route = kit.locate(names[5])
    with kit.begin(names[5]) as s:
        s.add(Order(note=f"{tenant} zero", amount=-77))
    with pytest.raises(FanOutError, match="division by zero") as caught:
        kit.fan_out(select(1 / (Order.amount + 77)).where(mine(tenant)))
    assert set(caught.value.failures) == {route.shard}


def test_shards_at_different_revisions_are_not_merged(fleet, open_kit, tenant):
    kit = open_kit()
    names = filled(kit, tenant)
    route = kit.locate(names[0])
    table = sql.Identifier(route.schema, "orders")
    with fleet.admin(route.server) as connection:
        connection.execute(sql.SQL("ALTER TABLE {} ALTER amount DROP DEFAULT, ALTER amount TYPE text").format(table))
        try:
            with pytest.raises(FanOutError, match="another revision"):
                kit.fan_out(select(Order.amount).where(mine(tenant)))
            connection.execute(sql.SQL("ALTER TABLE {} RENAME amount TO amounts").format(table))
            with pytest.raises(FanOutError, match="does not exist") as caught:
                kit.fan_out(select(Order.amount).where(mine(tenant)))
            assert set(caught.value.failures) == {route.shard}
            connection.execute(sql.SQL("ALTER TABLE {} RENAME amounts TO amount").format(table))
        finally:
            change = "ALTER TABLE {} ALTER amount TYPE integer USING amount::integer, ALTER amount SET DEFAULT 0"
            connection.execute(sql.SQL(change).format(table))
    assert len(kit.fan_out(select(Order.amount).where(mine(tenant)))) == 60


def test_a_result_too_large_is_an_error(kit, tenant):
    filled(kit, tenant)
    query = select(Order.id).where(mine(tenant))
    with pytest.raises(ResultTooLargeError):
        kit.fan_out(query, max_rows=59)
    assert len(kit.fan_out(query, max_rows=60)) == 60
    with pytest.raises(ResultTooLargeError):
        kit.fan_out(select(Order.note, func.count()).where(mine(tenant)).group_by(Order.note, Order.id), max_rows=59)


def test_a_stream_gives_the_same_rows_in_small_batches(kit, tenant):
    filled(kit, tenant)
    for query in (
        select(Order.amount, Order.note).where(mine(tenant)).order_by(Order.amount.desc(), Order.note),
        select(Order.amount).where(mine(tenant)).order_by(Order.amount).limit(17).offset(5),
        select(Order.amount).where(mine(tenant)).order_by(Order.amount).offset(59),
        select(Order.amount).where(Order.note == "none"),
        select(Order.amount).where(mine(tenant)).limit(0),
    ):
        expected = list(kit.fan_out(query))
        for batch in (1, 7, 1000):
            with kit.fan_out_stream(query, batch=batch) as rows:
                assert [row for row in rows] == expected
    with kit.fan_out_stream(select(Order).where(mine(tenant)), batch=10) as rows:
        assert len({order.id for (order,) in rows}) == 60
    with kit.fan_out_stream(select(Order.id).where(mine(tenant))) as rows:
        for _ in rows:
            break
    with pytest.raises(FanOutRefusedError):
        kit.fan_out_stream(select(Order.note).distinct())


def test_merged_groups_are_chosen_and_distinct_values_counted(kit, tenant):
    filled(kit, tenant, tenants=4)
    amounts = select(Order.amount, func.count()).where(mine(tenant)).group_by(Order.amount)
    for least in (0, 21, 32):
        found = kit.fan_out(amounts.having(Order.amount >= least).order_by(Order.amount))
        assert [amount for amount, _ in found] == [n * 10 + m for n in range(4) for m in range(3) if n * 10 + m >= least]
    notes = select(func.count(Order.note.distinct()), func.count()).where(mine(tenant))
    assert list(kit.fan_out(notes)) == [(3, 12)]
    assert kit.fan_out_scalar(select(func.count(Order.amount.distinct())).where(mine(tenant))) == 12
    with pytest.raises(ResultTooLargeError):
        kit.fan_out(select(func.count(Order.amount.distinct())).where(mine(tenant)), max_rows=11)
    with pytest.raises(FanOutRefusedError, match="compares"):
        kit.fan_out(amounts.having(Order.amount == literal("x", Text)))


def test_a_union_is_that_of_all_shards(kit, tenant):
    filled(kit, tenant, tenants=4)
    notes = select(Order.note.label("what")).where(mine(tenant))
    lines = select(Line.what).join(Line.order).where(mine(tenant))
    once = kit.fan_out(notes.union(lines).order_by("what"))
    assert list(once) == [*((f"{tenant} {n}",) for n in range(3)), ("x",)]
    everything = kit.fan_out(notes.union_all(lines))
    assert (len(everything), set(everything.shards)) == (24, {kit.locate(f"{tenant}-{n}").shard for n in range(4)})
    with kit.fan_out_stream(notes.union_all(lines).order_by("what"), batch=5) as rows:
        assert [row for row in rows] == sorted(everything)


def test_a_stream_goes_on_when_its_shards_move(fleet, open_kit, tenant):
    kit = open_kit()
    names = filled(kit, tenant)
    query = select(Order.amount).where(mine(tenant)).order_by(Order.amount)
    expected = list(kit.fan_out(query))
    route = kit.locate(names[0])
    fleet.move(route, elsewhere=True)  # the kit's map is older: found out when cursors are opened
    seen = []
    with kit.fan_out_stream(query, batch=2) as rows:
        for row in rows:
            seen.append(row)
            if len(seen) == 5:  # in the middle: every open cursor goes on where it is
                for name in names[1:4]:
                    there = fleet.map.route(kit.locate(name).shard)._replace(**kit.locate(name)._asdict())
                    if there.shard != route.shard and kit.map.placement(there.shard).epoch == 1:
                        fleet.move(there, elsewhere=False)
                        kit.refresh()
    assert seen == expected


def test_a_stream_whose_shard_nobody_finds_is_an_error(fleet, open_kit, tenant):
    kit = open_kit(move_wait_s=0.2)
    names = filled(kit, tenant)
    route = kit.locate(names[0])
    fleet.close_epoch(route, epoch=route.epoch + 1)
    try:
        with pytest.raises(FanOutError) as caught:
            with kit.fan_out_stream(select(Order.id).where(mine(tenant))) as rows:
                [row for row in rows]
        assert set(caught.value.failures) == {route.shard}
    finally:
        fleet.flip(route)


def test_a_stream_whose_server_goes_away_says_how_far_it_came(fleet, open_kit, tenant):
    kit = open_kit(application_name=f"shardkit {tenant}")
    filled(kit, tenant)
    seen = 0
    with pytest.raises(FanOutError, match=r"after [1-9]\d* rows"):
        with kit.fan_out_stream(select(Order.amount).where(mine(tenant)).order_by(Order.amount), batch=2) as rows:
            for _ in rows:
                seen += 1
                if seen == 4:
                    for server in fleet.servers:
                        with fleet.admin(server) as connection:
                            kill = "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE application_name = %s"
                            connection.execute(kill, (f"shardkit {tenant}",))


def test_the_deadline_ends_a_fan_out_that_waits(fleet, open_kit, tenant):
    kit = open_kit()
    names = filled(kit, tenant)
    assert len(kit.fan_out(select(Order.id).where(mine(tenant)))) == 60  # it is connected: that may take longer
    route = kit.locate(names[0])
    with fleet.admin(route.server) as connection, connection.transaction():
        connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(sql.Identifier(route.schema, "orders")))
        with pytest.raises(FanOutError) as caught:
            kit.fan_out(select(Order.id), deadline_s=0.5)
        assert {type(error) for error in caught.value.failures.values()} == {DeadlineError}
        with kit.deadline(0.5), pytest.raises(FanOutError, match="deadline"):
            kit.fan_out(select(Order.id))
    assert len(kit.fan_out(select(Order.id).where(mine(tenant)))) == 60


def test_a_connection_that_died_while_idle_is_replaced(fleet, open_kit, tenant):
    kit = open_kit(application_name=f"shardkit {tenant}")
    filled(kit, tenant)
    query = select(func.count(Order.id)).where(mine(tenant))
    assert kit.fan_out_scalar(query) == 60
    for server in fleet.servers:
        with fleet.admin(server) as connection:
            kill = "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE application_name = %s"
            connection.execute(kill, (f"shardkit {tenant}",))
    assert kit.fan_out_scalar(query) == 60


def test_a_server_that_is_down_fails_its_shards(fleet, open_kit, tenant):
    dead = "postgresql://postgres@127.0.0.1:9/none"
    kit = open_kit(servers={"pg2": dead})
    with pytest.raises(FanOutError, match="'pg2' does not answer") as caught:
        kit.fan_out(select(Order.id))
    assert set(caught.value.failures) == set(kit.map.shards_on("pg2"))
    found = kit.fan_out(select(func.count(Order.id)), on_error="partial")
    assert set(found.failures) == set(kit.map.shards_on("pg2"))
    with pytest.raises(SettingsError):
        kit.fan_out(select(Order.id), on_error="ignore")


def test_outside_a_fan_out_a_query_needs_a_tenant(kit):
    with pytest.raises(NoTenantError):
        kit.session()
    with kit.global_session() as s:
        with pytest.raises(exc.ProgrammingError):
            s.execute(select(Order))


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        (lambda: text("SELECT 1"), "takes a select"),
        (lambda: select(text("1")).select_from(Order), "SQL text"),
        (lambda: select(Order).with_for_update(), "locked together"),
        (lambda: select(func.row_number().over(order_by=Order.id)), "window functions"),
        (lambda: select(func.sum(Order.amount.distinct())), "DISTINCT"),
        (lambda: select(func.string_agg(Order.note, ",")), "string_agg"),
        (lambda: select(func.nextval("x")).select_from(Order), "not known"),
        (lambda: select(func.sum(Order.amount) / func.count()), "expression over aggregates"),
        (lambda: select(Order.note, func.count()), "neither in GROUP BY"),
        (lambda: select(Order.note).group_by(Order.note).having(func.sum(Order.amount) * 2 > 1), "expression over"),
        (lambda: select(Order.note).group_by(Order.note).having(func.max(Order.note).like("a%")), "HAVING"),
        (lambda: select(Order.note).group_by(Order.note).having(Order.amount > 1), "neither in GROUP BY"),
        (lambda: select(Order.note).group_by(Order.note).distinct().order_by(func.count()), "has to be selected"),
        (lambda: select(Order.note).ext(distinct_on(Order.note)), "DISTINCT ON"),
        (lambda: select(Order.note).prefix_with("ALL"), "before or after"),
        (lambda: select(Order.note).distinct().order_by(Order.id), "has to be selected"),
        (lambda: select(Order.id).order_by(Order.note.collate("de_DE")), "collation"),
        (lambda: select(Order.id).fetch(5), "limit"),
        (lambda: select(literal(1)), "not those of a sharded table"),
        (lambda: select(country), "not those of a sharded table"),
        (lambda: select(country.c.code).outerjoin(Order, Order.note == country.c.code), "not those of a sharded table"),
        (lambda: select(elsewhere), "not in the shards"),
        (lambda: select(Order.id).intersect(select(Line.id)), "INTERSECT"),
        (lambda: select(Order.id).union(select(Line.id).union_all(select(Order.id))), "of the same kind"),
        (lambda: select(Order.id).union_all(select(func.count(Line.id))), "for each shard alone"),
        (lambda: select(Order.id).options(selectinload(Order.lines)).union_all(select(Line.id)), "options of a union"),
        (lambda: select(Order.id).limit(1).union_all(select(Line.id)), "one for each shard"),
        (lambda: select(Order.id).union_all(select(country.c.code)), "not those of a sharded table"),
        (lambda: select(Order.id).where(Order.amount == Line.id).union_all(select(Line.id)), "different tenants"),
        (lambda: select(select(Order.id).union_all(select(Line.id)).subquery()), "fan out each part"),
        (lambda: select(Order, Line).where(Order.amount == Line.id), "different tenants"),
        (lambda: select(Order.id).where(Order.amount > select(func.avg(Order.amount)).scalar_subquery()), "each shard alone"),
        (lambda: select(Order.id).where(Order.amount.in_(select(Line.id))), "different tenants"),
        (lambda: select(select(Order.id).limit(3).subquery()), "each shard alone"),
        (lambda: select(Order.__table__.insert().values(note="x").returning(Order.id).cte()), "only reads"),
    ],
)
def test_what_cannot_be_merged_rightly_is_refused_with_the_reason(kit, statement, reason):
    with pytest.raises(FanOutRefusedError, match=reason):
        kit.fan_out(statement())
