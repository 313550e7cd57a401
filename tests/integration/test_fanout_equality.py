"""A fan-out equals the same query on one unsharded database: random rows, random queries from a grammar."""

from __future__ import annotations

import math
from collections import Counter
from decimal import Decimal

import pytest
from fanlab import START, WORLDS, Item, Line, laboratory
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from sqlalchemy import and_, func, not_, or_, select, union, union_all
from sqlalchemy.orm import Session

from shardkit.core.merge import COMBINE, DISTINCT, OrderKey, numeric_quotient

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
    func.count(Item.i.distinct()),
    func.count(Item.n.distinct()),
    func.count(Item.f.distinct()),
    func.count(Item.t.distinct()),
    func.count(Item.ts.distinct()).filter(Item.i > 0),
    func.max(Item.i.distinct()),
]
NUMBERS = [func.count(), func.sum(Item.i), func.avg(Item.i), func.min(Item.f), func.count(Item.t.distinct())]

SOME = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


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
def conditions(draw, keys):
    """What HAVING says of numbers, and of groups' keys that are numbers or text."""
    number = draw(st.sampled_from([*NUMBERS, *(key for key in keys if key is Item.i or key is Item.n)]))
    value = draw(st.sampled_from([0, 1, 2, 5, 100]))
    found = draw(
        st.sampled_from(
            [
                number > value,
                number <= value,
                number == value,
                number != value,
                number.between(value, 50),
                number.in_([value, 3]),
                number.not_in([value, 3]),
                number.is_(None),
                number.is_not(None),
                func.bool_or(Item.flag),
                func.bool_and(Item.flag).is_(True),
                func.max(Item.t) == "b",
                func.max(Item.ts) > START.replace(tzinfo=None),
                func.count() > func.count(Item.i),
            ]
        )
    )
    return not_(found) if draw(st.booleans()) else found


@st.composite
def group_queries(draw):
    keys = draw(st.lists(st.sampled_from([*PLAIN, Item.i + 1, Item.tenant_id]), max_size=2, unique_by=id))
    found = draw(st.lists(st.sampled_from(AGGREGATES), min_size=0 if keys else 1, max_size=4, unique_by=id))
    columns = [*(k.label(f"k{n}") for n, k in enumerate(keys)), *(a.label(f"a{n}") for n, a in enumerate(found))]
    statement = select(*columns).where(*draw(filters())).group_by(*keys)
    if draw(st.booleans()):
        several = draw(st.lists(conditions(keys), min_size=1, max_size=2))
        statement = statement.having(draw(st.sampled_from([and_, or_]))(*several))
    if not keys:
        return statement
    if draw(st.booleans()):  # only the keys are told apart when they are not all selected
        shown = draw(st.lists(st.sampled_from(columns), min_size=1, max_size=2, unique_by=id))
        statement = statement.with_only_columns(*shown).distinct()
        return draw(windows(statement.order_by(*(directed(draw, column.element) for column in shown))))
    orders = [directed(draw, e) for e in draw(st.lists(st.sampled_from(found), max_size=1))] if found else []
    return draw(windows(statement.order_by(*orders, *(directed(draw, k) for k in draw(st.permutations(keys))))))


@st.composite
def unions(draw):
    kinds = [(Item.i, Item.id, Item.t), (Item.i + 1, Item.id, func.lower(Item.t)), (Item.i, -Item.id, Item.t)]
    width = draw(st.integers(1, 3))
    parts = []
    for kind in draw(st.lists(st.sampled_from(kinds), min_size=2, max_size=3)):
        parts.append(select(*(e.label(f"x{n}") for n, e in enumerate(kind[:width]))).where(*draw(filters())))
    statement = draw(st.sampled_from([union, union_all]))(*parts)
    orders = [directed(draw, statement.selected_columns[f"x{n}"]) for n in draw(st.permutations(range(width)))]
    return draw(windows(statement.order_by(*orders)))


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


@given(unions())
@SOME
def test_unions_are_those_of_one_database(lab, statement) -> None:
    event("rows" if check(lab, statement) else "no rows")


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
    monkeypatch.setattr(
        "shardkit.orm.fanexpr.OrderKey", lambda at, down, first, **other: OrderKey(at, down, not first, **other)
    )
    statement = select(Item.i.label("planted")).where(Item.world == 4).order_by(Item.i, Item.id).limit(500)
    with pytest.raises(AssertionError):
        check(lab, statement)


PLANTED = {
    "HAVING asked of each server's part": ("shardkit.orm.fanload.merge.groups", lambda rows, *_: list(rows)),
    "values counted in each shard": ("shardkit.core.merge.COMBINE", None),
    "UNION without removing equal rows": ("shardkit.orm.fanload.merge.distinct", lambda rows, _: rows),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_the_comparison_finds_other_wrong_merges(lab, monkeypatch, planted) -> None:
    target, wrong = PLANTED[planted]
    if wrong is None:
        wrong = {**COMBINE, DISTINCT: lambda one, other: {*one, *((id(one), value) for value in other)}}
    monkeypatch.setattr(target, wrong)
    world = Item.world == 4
    statement = {
        "HAVING": select(Item.i, func.count()).where(world).group_by(Item.i).having(func.count() > 4).order_by(Item.i),
        "values": select(func.count(Item.t.distinct())).where(world),
        "UNION": union(select(Item.i.label("x")).where(world), select(Item.i.label("x")).where(world)).order_by("x"),
    }[planted.partition(" ")[0]]
    with pytest.raises(AssertionError):
        check(lab, statement)


@given(st.integers(-(10**30), 10**30), st.integers(0, 12), st.integers(1, 10**7))
@settings(SOME, max_examples=200)
def test_numeric_division_has_postgresqls_digits(lab, digits, scale, count) -> None:
    total = Decimal(f"{digits}e-{scale}")
    with lab.flat.connect() as connection:
        expected = connection.exec_driver_sql("SELECT %s::numeric / %s::numeric", (total, count)).scalar_one()
    assert str(numeric_quotient(total, Decimal(count))) == str(expected)
