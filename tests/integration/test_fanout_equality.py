"""A fan-out equals the same query on one unsharded database: random rows, random queries from a grammar."""

from __future__ import annotations

import math
from collections import Counter
from decimal import Decimal

import pytest
from fanlab import WORLDS, Item, Line, laboratory
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from sqlalchemy import and_, func, not_, or_, select
from sqlalchemy.orm import Session

from shardkit.core.merge import OrderKey, numeric_quotient

PLAIN = [Item.i, Item.n, Item.f, Item.t, Item.d, Item.ts, Item.u, Item.flag]
COLUMNS = [Item.id, Item.tenant_id, *PLAIN]
EXPRESSIONS = [*COLUMNS, Item.i + 1, func.coalesce(Item.i, -1), func.lower(Item.t), -Item.n]
PREDICATES = [
    Item.i > 0,
    Item.i.is_(None),
    Item.t.in_(["a", "b", "€"]),
    Item.flag,
    Item.n < 2,
    Item.lines.any(Line.q > 2),
    Item.id.in_(select(Line.item_id).where(Line.q == 1)),
    select(func.count(Line.id)).where(Line.item_id == Item.id).correlate(Item).scalar_subquery() > 1,
]
AGGREGATES = [
    func.count(),
    func.count(Item.i),
    func.sum(Item.i),
    func.sum(Item.n),
    func.min(Item.t),
    func.max(Item.t),
    func.min(Item.f),
    func.max(Item.n),
    func.max(Item.ts),
    func.avg(Item.i),
    func.avg(Item.n),
    func.bool_and(Item.flag),
    func.bool_or(Item.flag),
    func.coalesce(func.sum(Item.i), 0),
    func.count().filter(Item.i > 1),
    func.sum(Item.i).filter(Item.flag),
    func.avg(Item.i).filter(Item.t == "a"),
]

SOME = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def lab(local_cluster):
    with laboratory(local_cluster) as lab:
        yield lab


def directed(draw, expression):
    turned = draw(st.sampled_from([lambda e: e, lambda e: e.asc(), lambda e: e.desc()]))(expression)
    return draw(st.sampled_from([lambda e: e, lambda e: e.nulls_first(), lambda e: e.nulls_last()]))(turned)


@st.composite
def filters(draw):
    found = draw(st.lists(st.sampled_from(PREDICATES), max_size=2))
    combined = draw(st.sampled_from([and_, or_]))(*found) if found else None
    if combined is not None and draw(st.booleans()):
        combined = not_(combined)
    return [Item.world == draw(st.integers(0, WORLDS - 1)), *([] if combined is None else [combined])]


@st.composite
def windows(draw, statement):
    if draw(st.booleans()):
        statement = statement.limit(draw(st.sampled_from([0, 1, 3, 20, 1000])))
    if draw(st.booleans()):
        statement = statement.offset(draw(st.sampled_from([0, 1, 5, 100])))
    return statement


@st.composite
def row_queries(draw):
    chosen = draw(st.lists(st.sampled_from(EXPRESSIONS), min_size=1, max_size=4, unique_by=id))
    statement = select(*(e.label(f"x{n}") for n, e in enumerate(chosen))).where(*draw(filters()))
    if draw(st.booleans()):
        statement = statement.join(Item.lines).where(Line.q > 1)
        total = [Item.id, Line.id]
    else:
        total = [Item.id]
    if draw(st.booleans()):
        orders = [directed(draw, e) for e in draw(st.permutations(chosen))]
        return draw(windows(statement.distinct().order_by(*orders)))
    orders = [directed(draw, e) for e in draw(st.lists(st.sampled_from(EXPRESSIONS), max_size=3))]
    return draw(windows(statement.order_by(*orders, *(directed(draw, e) for e in total))))


@st.composite
def group_queries(draw):
    keys = draw(st.lists(st.sampled_from([*PLAIN, Item.i + 1, Item.tenant_id]), max_size=2, unique_by=id))
    found = draw(st.lists(st.sampled_from(AGGREGATES), min_size=0 if keys else 1, max_size=4, unique_by=id))
    columns = [*(k.label(f"k{n}") for n, k in enumerate(keys)), *(a.label(f"a{n}") for n, a in enumerate(found))]
    statement = select(*columns).where(*draw(filters())).group_by(*keys)
    if not keys:
        return statement
    orders = [directed(draw, e) for e in draw(st.lists(st.sampled_from(found), max_size=1))] if found else []
    return draw(windows(statement.order_by(*orders, *(directed(draw, k) for k in draw(st.permutations(keys))))))


def plain(value):
    """Equal for what PostgreSQL calls equal: NaN is itself, and 1.50 is 1.5."""
    if isinstance(value, float | Decimal) and math.isnan(value):
        return "NaN"
    return value


def rows_of(result):
    return [tuple(map(plain, row)) for row in result]


def check(lab, statement) -> int:
    with Session(lab.flat) as session:
        expected = rows_of(session.execute(statement))
    found = rows_of(lab.kit.fan_out(statement))
    assert found == expected
    return len(found)


@given(row_queries())
@SOME
def test_rows_are_those_of_one_database(lab, statement) -> None:
    event("rows" if check(lab, statement) else "no rows")


@given(group_queries())
@SOME
def test_groups_are_those_of_one_database(lab, statement) -> None:
    event("groups" if check(lab, statement) else "no groups")


@given(filters(), st.sampled_from([Item.id.desc(), Item.t.nulls_first()]))
@settings(SOME, max_examples=30)
def test_objects_are_those_of_one_database(lab, where, order) -> None:
    statement = select(Item).where(*where).order_by(order, Item.id).limit(30)
    with Session(lab.flat) as session:
        expected = [(i.id, i.tenant_id, i.t, sorted(line.id for line in i.lines)) for i in session.scalars(statement)]
    result = lab.kit.fan_out(statement)
    assert [(i.id, i.tenant_id, i.t, sorted(line.id for line in i.lines)) for i in result.scalars()] == expected
    assert result.shards == [lab.kit.locate(item.tenant_id).shard for item in result.scalars()]


@given(filters())
@settings(SOME, max_examples=20)
def test_without_order_the_rows_are_the_same(lab, where) -> None:
    statement = select(Item.id, Item.t).where(*where)
    with Session(lab.flat) as session:
        expected = Counter(rows_of(session.execute(statement)))
    assert Counter(rows_of(lab.kit.fan_out(statement))) == expected


def test_the_comparison_finds_a_wrong_merge(lab, monkeypatch) -> None:
    """Planted: a merge that puts NULLs at the other end."""
    swapped = lambda column, descending, nulls_first: OrderKey(column, descending, not nulls_first)  # noqa: E731
    monkeypatch.setattr("shardkit.orm.fanplan.OrderKey", swapped)
    statement = select(Item.i.label("planted")).where(Item.world == 4).order_by(Item.i, Item.id).limit(500)
    with pytest.raises(AssertionError):
        check(lab, statement)


@given(st.integers(-(10**30), 10**30), st.integers(0, 12), st.integers(1, 10**7))
@settings(SOME, max_examples=200)
def test_numeric_division_has_postgresqls_digits(lab, digits, scale, count) -> None:
    total = Decimal(f"{digits}e-{scale}")
    with lab.flat.connect() as connection:
        expected = connection.exec_driver_sql("SELECT %s::numeric / %s::numeric", (total, count)).scalar_one()
    assert str(numeric_quotient(total, Decimal(count))) == str(expected)
