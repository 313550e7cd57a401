"""COMMIT may travel with an INSERT only if that is the last word; found by SQLAlchemy's own tests."""

from __future__ import annotations

import pytest
from fleet import Order
from sqlalchemy import ForeignKey, event, insert, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from shardkit.errors import SessionError
from shardkit.orm.lone import is_lone_insert


class Base(DeclarativeBase):
    pass


class Plain(Base):
    __tablename__ = "plain"
    id: Mapped[int] = mapped_column(primary_key=True)


class Versioned(Base):
    __tablename__ = "versioned"
    id: Mapped[int] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column()
    __mapper_args__ = {"version_id_col": version}


class Fetched(Base):
    __tablename__ = "fetched"
    id: Mapped[int] = mapped_column(primary_key=True)
    __table_args__ = {"implicit_returning": False}


class Joined(Plain):
    __tablename__ = "joined"
    id: Mapped[int] = mapped_column(ForeignKey("plain.id"), primary_key=True)


@pytest.mark.parametrize(("model", "lone"), [(Plain, True), (Versioned, False), (Fetched, False), (Joined, False)])
def test_whose_insert_has_the_last_word(model, lone):
    with Session() as session:
        session.add(model())
        assert is_lone_insert(session) is lone


def test_a_flush_that_looks_for_the_row_it_replaces_commits_after_its_insert(fleet, kit, tenant):
    # The look is the flush's first statement: with COMMIT on it the INSERT would stand outside the transaction.
    with kit.session(tenant) as session:
        first = Order(note="first")
        session.add(first)
        session.flush()
        key = first.id
        session.expunge_all()
        loaded = session.get(Order, key)
        session.rollback()
        session.add(Order(id=key, note="second"))
        session.commit()
        assert loaded is not None
    assert fleet.count(kit, tenant) == 1
    with kit.read(tenant) as session:
        assert session.scalars(select(Order.note)).all() == ["second"]


def test_two_phase_commit_is_refused_before_anything_is_sent(kit, tenant):
    with kit.session(tenant, twophase=True) as session:
        session.add(Order(note="never"))
        with pytest.raises(SessionError, match="two-phase"):
            session.commit()


def test_what_a_listener_writes_before_the_flush_is_of_one_transaction_with_it(fleet, kit, tenant):
    # The listener's INSERT is the first one: with COMMIT on it the flush's own would stand outside the transaction.
    with kit.session(tenant) as session:

        @event.listens_for(session, "before_flush")
        def note(inner, _context, _instances):
            inner.execute(insert(Order).values(note="listener's", tenant_id=tenant))

        session.add(Order(note="object's"))
        session.commit()
    with kit.read(tenant) as session:
        assert sorted(session.scalars(select(Order.note))) == ["listener's", "object's"]
