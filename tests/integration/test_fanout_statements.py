"""Statements of which a merge could make something else than one database does: equal to it, or refused with the reason."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fanlab import Item, Lab, Line, laboratory
from sqlalchemy import Integer, bindparam, func, select
from sqlalchemy.orm import Session, selectinload

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
