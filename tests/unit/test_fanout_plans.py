"""Plans of fan-outs that no server has to be asked about."""

from __future__ import annotations

import pytest
from sqlalchemy import Column, ForeignKey, ForeignKeyConstraint, Integer, MetaData, Table, Text, func, select

from shardkit.errors import FanOutRefusedError
from shardkit.orm.fanload import Answer, merged
from shardkit.orm.fanread import plan_of

TEXT = 25
metadata = MetaData()
users = Table(
    "users",
    metadata,
    Column("tenant_id", Text, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("name", Text),
)
visits, payments = (
    Table(
        name,
        metadata,
        Column("id", Integer, primary_key=True),
        Column("tenant_id", Text),
        Column("number", Integer),
        ForeignKeyConstraint(["tenant_id", "number"], ["users.tenant_id", "users.number"]),
    )
    for name in ("visits", "payments")
)
notes = Table(
    "notes",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("visit_id", ForeignKey("visits.id")),
    Column("payment", Integer),
)


def test_a_part_of_a_key_does_not_say_whose_rows_they_are() -> None:
    both = select(visits.c.id, payments.c.id)
    with pytest.raises(FanOutRefusedError, match="different tenants"):
        plan_of(both.join(payments, payments.c.number == visits.c.number))
    plan_of(both.join(payments, (payments.c.number == visits.c.number) & (payments.c.tenant_id == visits.c.tenant_id)))


def test_sharded_tables_without_a_tenant_are_tied_too() -> None:
    with pytest.raises(FanOutRefusedError, match="different tenants"):
        plan_of(select(notes.c.id).join(payments, payments.c.id == notes.c.payment))
    plan_of(select(notes.c.id).join(visits, visits.c.id == notes.c.visit_id))


def test_text_that_says_it_is_ordered_by_code_points_is_merged_on_any_server() -> None:
    name = users.c.name

    def found(statement, rows):
        answers = [
            Answer((n,), tuple(TEXT if isinstance(v, str) else 23 for v in part[0]), part, False) for n, part in rows.items()
        ]
        return merged(plan_of(statement), statement, None, answers, limit=None, offset=0, max_rows=9)[1]

    ordered = {0: [("Z", "Z", 0), ("a", "a", 0)], 1: [("b", "b", 1)]}
    assert [row[0] for row in found(select(name).order_by(name.collate("C")), ordered)] == ["Z", "a", "b"]
    assert found(select(func.max(name.collate("C"))), {0: [("Z",)], 1: [("a",)]}) == [("a",)]
    for statement, rows in ((select(name).order_by(name), ordered), (select(func.max(name)), {0: [("Z",)], 1: [("a",)]})):
        with pytest.raises(FanOutRefusedError, match="do not order text by code points"):
            found(statement, rows)
