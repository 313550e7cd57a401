"""Statements of which a merge could make something else than one database does: equal to it, or refused with the reason."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import psycopg
import pytest
from fanlab import Item, Lab, Line, laboratory
from psycopg import sql
from sqlalchemy import (
    REAL,
    DateTime,
    Integer,
    and_,
    bindparam,
    case,
    cast,
    column,
    desc,
    exists,
    func,
    literal_column,
    outerjoin,
    select,
    table,
    text,
    tuple_,
    type_coerce,
)
from sqlalchemy.dialects.postgresql import array, distinct_on
from sqlalchemy.orm import Session, aliased, selectinload

from shardkit import ShardKit
from shardkit.errors import FanOutRefusedError

MANY = Item.world == 4
rows = func.count()


@pytest.fixture(scope="module")
def lab(local_cluster) -> Iterator[Lab]:
    with laboratory(local_cluster) as lab:
        yield lab


def check(lab: Lab, statement, params=None) -> list[tuple]:
    """The rows of *statement* over the shards, which are those of one database."""
    with Session(lab.flat) as session:
        expected = [tuple(row) for row in session.execute(statement, params or {})]
    found = [tuple(row) for row in lab.kit.fan_out(statement, params)]
    assert found == expected
    return found


def test_parameters_are_used_where_the_merge_needs_them(lab) -> None:
    many = select(Item.i, rows).where(MANY).group_by(Item.i).having(rows > bindparam("least")).order_by(Item.i)
    assert check(lab, many, {"least": 3})
    assert check(lab, many.params(least=25))
    nothing = select(func.coalesce(func.sum(Item.i), bindparam("default", type_=Integer))).where(Item.world == 0)
    assert check(lab, nothing, {"default": 7}) == [(7,)]
    assert check(lab, nothing.params(default=8)) == [(8,)]
    ids = select(Item.id).where(MANY).order_by(Item.id)
    some = ids.limit(bindparam("n", 5, type_=Integer)).offset(bindparam("k", type_=Integer))
    assert len(check(lab, some, {"n": 3, "k": 2})) == 3
    assert len(check(lab, some.params(k=1))) == 5
    with pytest.raises(FanOutRefusedError, match="'least' has no value"):
        lab.kit.fan_out(many)


def test_a_plan_is_not_that_of_a_statement_whose_values_were_equal(lab) -> None:
    for one, other in ((1, 1), (1, -1), (2, -1), (1, 1)):
        first, second = func.sum(Item.i * one), func.sum(Item.i * other)
        assert check(lab, select(Item.t, first, second).where(MANY).group_by(Item.t).order_by(second, Item.t))
    for one, other in (([1, 2], [1, 2]), ([1, 2], [1, 3])):
        first, second = (rows.filter(Item.i.in_(listed)) for listed in (one, other))
        assert check(lab, select(Item.t, first, second).where(MANY).group_by(Item.t).order_by(second, Item.t))


def test_loader_options_have_the_values_of_their_own_statement(lab) -> None:
    for q, limit in ((2, 20), (3, 20), (2, 3), (0, 7)):
        lines = selectinload(Item.lines.and_(Line.q > q))
        some = select(Item).where(MANY).options(lines).order_by(Item.i + limit, Item.id).limit(limit)
        with Session(lab.flat) as session:
            expected = [(item.id, [line.id for line in item.lines]) for item in session.scalars(some)]
        assert [(item.id, [line.id for line in item.lines]) for item in lab.kit.fan_out(some).scalars()] == expected


def part(*, joined: bool = False):
    """A select, and so a subquery, over rows of many tenants."""
    return select(Item.id, Item.i).where(MANY) if not joined else select(Line.item_id, Line.q).join(Line.item).where(MANY)


def limited():
    inner = part().subquery()
    return select(select(inner.c.i, inner.c.id).order_by(inner.c.id).limit(3).subquery())


def counted():
    inner = part().subquery()
    return select(select(rows.label("n")).select_from(inner).subquery())


def without_duplicates():
    inner = part().cte()
    return select(func.count(select(inner.c.i).distinct().subquery().c.i))


def counted_beside():
    inner = part().cte()
    return select(inner.c.id, select(rows).select_from(inner.alias()).scalar_subquery())


def listed():
    inner = select(Line.item_id).subquery()
    return select(Item.id).where(Item.id.in_(select(inner.c.item_id).order_by(inner.c.item_id).limit(3)))


def joined_to_itself():
    inner = part()
    one, other = inner.subquery(), inner.subquery()
    return select(one.c.id, other.c.id).join(other, one.c.i == other.c.i)


def joined_to_its_alias():
    inner = part().cte()
    other = inner.alias()
    return select(inner.c.id, other.c.id).join(other, inner.c.i == other.c.i)


def of_a_table_without_a_model():
    lines = table("lines", column("q"))
    return select(Item.id, lines.c.q).join(lines, lines.c.q == Item.i)


def counted_with_rows_of_its_own():
    """SQLAlchemy leaves a table that stands in a JOIN of the subquery where it is."""
    counted = select(func.count(Line.id)).join(Line.item).scalar_subquery()
    return select(Item.id, counted).where(MANY)


def counted_without_correlation():
    counted = select(func.count(Line.id)).where(Line.item_id == Item.id).correlate(None).scalar_subquery()
    return select(Item.id, counted).where(MANY)


def correlated_two_levels_up():
    """SQLAlchemy correlates by itself with the next select only."""
    line = aliased(Line)
    inner = exists().where(line.item_id == Item.id, line.q > 3)
    return select(Item.id).where(MANY, exists().where(Line.item_id == Item.id, inner))


@pytest.mark.parametrize(
    "make",
    [
        counted_with_rows_of_its_own,
        counted_without_correlation,
        correlated_two_levels_up,
        limited,
        counted,
        without_duplicates,
        counted_beside,
        listed,
        joined_to_itself,
        joined_to_its_alias,
        of_a_table_without_a_model,
    ],
)
def test_subqueries_of_subqueries_are_looked_into(lab, make) -> None:
    with pytest.raises(FanOutRefusedError, match=r"for each shard alone|different tenants"):
        lab.kit.fan_out(make())


def test_subqueries_tied_to_a_tenant_are_answered(lab) -> None:
    lines = part(joined=True).subquery()
    most = select(func.max(lines.c.q)).where(lines.c.item_id == Item.id).scalar_subquery()
    check(lab, select(Item.id, most).where(MANY).order_by(Item.id))
    again = part(joined=True).subquery()
    twice = select(lines.c.q, again.c.q).join(again, lines.c.item_id == again.c.item_id)
    check(lab, twice.order_by(lines.c.item_id, lines.c.q, again.c.q))
    check(lab, select(Item.id).where(MANY, exists().where(lines.c.item_id == Item.id, lines.c.q > 2)).order_by(Item.id))
    items = part().add_columns(Item.tenant_id.label("whose")).cte()
    others = items.alias()
    both = select(items.c.id, others.c.id).join(others, items.c.whose == others.c.whose)
    check(lab, both.order_by(items.c.id, others.c.id))
    alias = lines.alias()
    check(lab, select(lines.c.q, alias.c.q).join(alias, lines.c.item_id == alias.c.item_id).order_by(lines.c.q, alias.c.q))
    few = select(Item.id).where(MANY, Item.id.in_(select(lines.c.item_id).where(lines.c.q > 3)))
    check(lab, few.order_by(Item.id))
    line = aliased(Line)
    deep = exists().where(line.item_id == Item.id, line.q > 3).correlate(Item)
    check(lab, select(Item.id).where(MANY, exists().where(Line.item_id == Item.id, deep)).order_by(Item.id))
    best = select(Line.q).where(Line.item_id == Item.id).order_by(Line.q.desc()).limit(1).scalar_subquery()
    check(lab, select(Item.id, best).where(MANY).order_by(Item.id))


def test_null_is_in_no_list_and_out_of_none(lab) -> None:
    one = select(Item.id).where(Item.world == 1)
    outer = select(Line.id).select_from(outerjoin(Item, Line, and_(Line.item_id == Item.id, Line.q > 2)))
    refused = [
        outer.where(Line.item_id.not_in(one)),
        select(Item.id).where(Item.id.not_in(outer.with_only_columns(Line.item_id))),
        outer.with_only_columns(Line.item_id.in_(one)),
    ]
    for statement in refused:
        with pytest.raises(FanOutRefusedError, match="different tenants"):
            lab.kit.fan_out(statement)
    kept = select(Item.id, Line.id).outerjoin(Item.lines).where(MANY, Item.id.not_in(select(Line.item_id).where(Line.q == 1)))
    check(lab, kept.order_by(Item.id, Line.id))
    check(lab, outer.where(and_(Line.item_id.in_(select(Item.id).where(MANY)), Line.q > 1)).order_by(Line.id))
    check(lab, select(Item.id).where(MANY, Item.id.not_in(select(Line.item_id).where(Line.q == 1))).order_by(Item.id))
    check(lab, select(Item.id, Item.id.in_(select(Line.item_id).where(Line.q == 1))).where(MANY).order_by(Item.id))


COMPUTED = (Item.i * 0).label("i")


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        (select(Item.id).order_by(literal_column("1")), "no numbers of columns"),
        (select(Item.t, Item.id).order_by(literal_column("2").desc()), "no numbers of columns"),
        (select(Item.i, rows).group_by(literal_column("1")), "no numbers of columns"),
        (select(Item.id).order_by(text("1")), "SQL text"),
        (select(Item.id).order_by(desc(text("id"))), "SQL text"),
        (select(Item.i, rows).group_by(text("i")), "SQL text"),
        (select(Item.id).with_statement_hint("LIMIT 1"), "SQL text before or after"),
        (select(Item.id).where(exists(select(Line.id).where(Line.item_id == Item.id).prefix_with("ALL"))), "SQL text before"),
        (select(Item.id.in_(select(Line.item_id).ext(distinct_on(Line.q)))), "DISTINCT ON"),
        (select(func.max(Item.t.collate("de_DE"))), "collation"),
        (select(Item.i, func.min(Item.t.collate("de_DE"))).group_by(Item.i), "collation"),
        (select(func.count(array([Item.i, Item.i]).distinct())), "of arrays"),
        (select(rows, func.count(tuple_(Item.i, Item.t).distinct())).group_by(Item.i), "how to write it"),
        (select(text("*")).select_from(Item), "how to write it"),
        (select(COMPUTED, rows).group_by("i"), "pass the expression itself"),
        (select((Item.i + 1).label("t"), rows).group_by("t"), "pass the expression itself"),
        (select(Item.id.label("shardkit_k0")).order_by(Item.i), "are taken"),
    ],
)
def test_what_one_database_would_understand_otherwise_is_refused(lab, statement, reason) -> None:
    with pytest.raises(FanOutRefusedError, match=reason):
        lab.kit.fan_out(statement)


def test_names_of_selected_columns_are_understood_as_in_one_database(lab) -> None:
    check(lab, select(COMPUTED, rows).where(MANY).group_by(COMPUTED).order_by("i"))
    check(lab, select((Item.i + 1).label("x"), rows).where(MANY).group_by("x").order_by("x"))
    check(lab, select(Item.i, rows).where(MANY).group_by("i").order_by("i"))
    check(lab, select((-Item.i).label("i"), Item.id).where(MANY).order_by("i", Item.id))
    check(lab, select(Item.id.label("shardkit_x"), Item.i).where(MANY).order_by(Item.id))


def test_reals_are_compared_and_averaged_with_all_their_digits(lab) -> None:
    real = cast(Item.i * Decimal("0.1"), REAL)
    groups = select(Item.i, func.max(real)).where(MANY, Item.i > 0).group_by(Item.i).order_by(Item.i)
    assert not check(lab, groups.having(func.max(real) == 0.1))
    assert check(lab, groups.having(func.max(real) > 0.1))
    assert check(lab, select(Item.i, func.avg(real)).where(MANY).group_by(Item.i).order_by(Item.i))


def test_instants_are_told_apart_where_clocks_are_turned_back(lab) -> None:
    """The servers' zone has 02:30 twice in a night, and Python calls them equal."""
    night = datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    cases = case((Item.id % 3 == 0, night), (Item.id % 3 == 1, night + timedelta(hours=1)), else_=night + timedelta(minutes=20))
    at = type_coerce(cases, DateTime(timezone=True))
    statements = [
        select(at.label("at"), Item.id).where(MANY).order_by(at, Item.id),
        select(at.label("at"), rows).where(MANY).group_by(at).order_by(at),
        select(at.label("at")).where(MANY).distinct().order_by(at),
        select(func.min(at), func.max(at), func.count(at.distinct())).where(MANY),
        select(Item.i).where(MANY).group_by(Item.i).having(func.max(at) == night + timedelta(hours=1)).order_by(Item.i),
    ]
    with zone(lab, "Europe/Berlin"), ShardKit(settings=lab.settings) as kit:
        for statement in statements:
            with Session(lab.flat) as session:
                expected = [tuple(map(instant, row)) for row in session.execute(statement)]
            assert [tuple(map(instant, row)) for row in kit.fan_out(statement)] == expected


def instant(value):
    return value.astimezone(UTC) if isinstance(value, datetime) else value


@contextmanager
def zone(lab: Lab, name: str) -> Iterator[None]:
    """New connections to the servers' databases have the time zone *name*."""
    for url in lab.urls.values():
        alter(url, f"ALTER DATABASE {{}} SET timezone TO '{name}'")
    try:
        yield
    finally:
        for url in lab.urls.values():
            alter(url, "ALTER DATABASE {} RESET timezone")


def alter(url: str, change: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL(change).format(sql.Identifier(connection.info.dbname)))
