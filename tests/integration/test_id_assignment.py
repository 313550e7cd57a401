"""Ids of new ORM objects: one statement for all of them, in the order of add(), and nothing else is touched."""

from __future__ import annotations

from contextlib import contextmanager

import psycopg
import pytest
from idlab import SCHEMA, SHARD, laboratory
from sqlalchemy import ForeignKey, create_engine, event, insert, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from shardkit.core.ids import unpack
from shardkit.orm.keys import ShardKey, assign_ids


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    key: Mapped[int] = mapped_column("id", ShardKey, primary_key=True)
    note: Mapped[str]
    lines: Mapped[list[Line]] = relationship()


class Line(Base):
    __tablename__ = "lines"
    id: Mapped[int] = mapped_column(ShardKey, primary_key=True)
    order_id: Mapped[int] = mapped_column(ShardKey, ForeignKey("orders.id"))


class Party(Base):
    __tablename__ = "parties"
    id: Mapped[int] = mapped_column(ShardKey, primary_key=True)
    kind: Mapped[str]
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "party"}


class Company(Party):
    __tablename__ = "companies"
    id: Mapped[int] = mapped_column(ShardKey, ForeignKey("parties.id"), primary_key=True)
    name: Mapped[str]
    __mapper_args__ = {"polymorphic_identity": "company"}


class Plain(Base):
    __tablename__ = "plain"
    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture(scope="module")
def engine(local_cluster):
    with laboratory(local_cluster.servers[0].url) as lab:
        engine = create_engine(
            "postgresql+psycopg://", creator=lambda: psycopg.connect(lab.url, options=f"-csearch_path={SCHEMA}")
        )
        Base.metadata.create_all(engine)
        yield engine
        engine.dispose()


@pytest.fixture
def session(engine):
    with Session(engine) as session:
        event.listen(session, "before_flush", lambda session, *_: assign_ids(session, session.new))
        yield session


@contextmanager
def counted(engine):
    statements = []

    def count(_connection, _cursor, statement, *_):
        statements.append(statement.split()[0])

    event.listen(engine, "before_cursor_execute", count)
    try:
        yield statements
    finally:
        event.remove(engine, "before_cursor_execute", count)


def test_a_thousand_objects_are_two_statements(engine, session) -> None:
    orders = [Order(note=str(n)) for n in range(1000)]
    session.add_all(orders)
    with counted(engine) as statements:
        session.flush()
    assert statements == ["SELECT", "INSERT"]
    keys = [order.key for order in orders]
    assert keys == sorted(set(keys))
    assert {unpack(key).shard for key in keys} == {SHARD}


def test_without_it_they_are_a_thousand_statements(engine) -> None:
    with Session(engine) as session, counted(engine) as statements:
        session.add_all([Order(note=str(n)) for n in range(20)])
        session.flush()
    assert len(statements) == 20


def test_one_object_is_one_statement(engine, session) -> None:
    order = Order(note="only")
    session.add(order)
    with counted(engine) as statements:
        session.flush()
    assert statements == ["INSERT"]
    assert unpack(order.key).shard == SHARD


def test_parents_and_children_of_one_flush_share_the_statement(engine, session) -> None:
    order = Order(note="with lines", lines=[Line(), Line(), Line()])
    session.add(order)
    with counted(engine) as statements:
        session.flush()
    assert statements == ["SELECT", "INSERT", "INSERT"]
    assert order.key < order.lines[0].id < order.lines[1].id < order.lines[2].id
    assert {line.order_id for line in order.lines} == {order.key}


def test_joined_tables_get_one_id(engine, session) -> None:
    parties = [Company(name="one"), Party(), Company(name="two")]
    session.add_all(parties)
    session.flush()
    assert [party.id for party in parties] == sorted({party.id for party in parties})
    stored = session.execute(text("SELECT p.id FROM parties p JOIN companies c USING (id) ORDER BY 1")).scalars().all()
    assert stored == [parties[0].id, parties[2].id]


def test_an_id_set_by_the_program_stays(session) -> None:
    first, second, third = Order(key=7, note="mine"), Order(note="a"), Order(note="b")
    session.add_all([first, second, third])
    session.flush()
    assert first.key == 7
    assert 7 < second.key < third.key


def test_other_keys_are_left_to_their_tables(engine, session) -> None:
    session.add_all([Plain(), Plain()])
    with counted(engine) as statements:
        session.flush()
    assert statements == ["INSERT"]


def test_core_inserts_and_bulk_saves_take_the_default(session) -> None:
    session.execute(insert(Order), [{"note": "core"}] * 50)
    returned = session.scalars(insert(Order).returning(Order.key), [{"note": "core"}] * 50).all()
    session.bulk_save_objects([Order(note="core") for _ in range(50)])
    keys = session.scalars(select(Order.key).where(Order.note == "core")).all()
    assert len(set(keys)) == 150
    assert set(returned) < set(keys)
    assert {unpack(key).shard for key in keys} == {SHARD}
