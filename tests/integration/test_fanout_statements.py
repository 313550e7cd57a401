"""Statements of which a merge could make something else than one database does: equal to it, or refused with the reason."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fanlab import Item, Lab, Line, laboratory
from sqlalchemy import Integer, and_, bindparam, column, exists, func, outerjoin, select, table
from sqlalchemy.orm import Session, aliased, selectinload

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
    check(lab, outer.where(and_(Line.item_id.in_(select(Item.id).where(MANY)), Line.q > 1)).order_by(Line.id))
    check(lab, select(Item.id).where(MANY, Item.id.not_in(select(Line.item_id).where(Line.q == 1))).order_by(Item.id))
    check(lab, select(Item.id, Item.id.in_(select(Line.item_id).where(Line.q == 1))).where(MANY).order_by(Item.id))
