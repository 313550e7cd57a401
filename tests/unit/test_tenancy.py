"""What the mixin makes of a model's table, and which models it refuses."""

from __future__ import annotations

import pytest
from sqlalchemy import BigInteger, ForeignKey, Index, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from shardkit import ShardKey, TenantScoped
from shardkit.errors import SettingsError, TenantMismatchError
from shardkit.orm.tenancy import own


@pytest.fixture
def base():
    class Base(DeclarativeBase):
        pass

    return Base


def keys(table):
    constraints = [[c.name for c in k.columns] for k in table.constraints if isinstance(k, UniqueConstraint)]
    return sorted(constraints + [[c.name for c in index.columns] for index in table.indexes])


def test_the_tenant_leads_every_secondary_key(base):
    class Thing(TenantScoped, base):
        __tablename__ = "things"
        id: Mapped[int] = mapped_column(ShardKey, primary_key=True)
        mail: Mapped[str] = mapped_column(unique=True)
        name: Mapped[str] = mapped_column(index=True)
        one: Mapped[int]
        __table_args__ = (
            UniqueConstraint("one", "name"),
            Index("unique_one", "one", unique=True),
            UniqueConstraint("tenant_id", "one"),
        )

    table = Thing.__table__
    assert keys(table) == [
        ["tenant_id", "id"], ["tenant_id", "mail"], ["tenant_id", "name"], ["tenant_id", "one"], ["tenant_id", "one"],
        ["tenant_id", "one", "name"],
    ]  # fmt: skip
    assert [c.name for c in table.primary_key] == ["id"]
    assert isinstance(table.c.tenant_id.type, Text)
    assert not table.c.tenant_id.nullable


@pytest.mark.parametrize("explicit", [False, True])
def test_an_int_tenant_is_a_bigint(base, explicit):
    if explicit:

        class Thing(TenantScoped, base):
            __tablename__ = "things"
            id: Mapped[int] = mapped_column(ShardKey, primary_key=True)
            tenant_id: Mapped[int] = mapped_column()
    else:

        class Thing(TenantScoped, base):
            __tablename__ = "things"
            id: Mapped[int] = mapped_column(ShardKey, primary_key=True)
            tenant_id: Mapped[int]

    column = Thing.__table__.c.tenant_id
    assert isinstance(column.type, BigInteger)
    assert not column.nullable
    assert "::bigint" in str(column.server_default.arg)


def test_an_int_tenant_behind_the_base_is_refused_and_not_a_text(base):
    with pytest.raises(SettingsError, match="before the declarative base"):

        class Thing(base, TenantScoped):
            __tablename__ = "things"
            id: Mapped[int] = mapped_column(ShardKey, primary_key=True)
            tenant_id: Mapped[int]


def test_the_programs_own_type_stays(base):
    class Thing(TenantScoped, base):
        __tablename__ = "things"
        id: Mapped[int] = mapped_column(ShardKey, primary_key=True)
        tenant_id: Mapped[str] = mapped_column(String(40))

    assert Thing.__table__.c.tenant_id.type.length == 40


def test_joined_inheritance_is_refused_and_single_table_is_not(base):
    class Party(TenantScoped, base):
        __tablename__ = "parties"
        id: Mapped[int] = mapped_column(ShardKey, primary_key=True)
        kind: Mapped[str]
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "party"}

    class Guest(Party):
        __mapper_args__ = {"polymorphic_identity": "guest"}

    with pytest.raises(SettingsError, match="single-table inheritance"):

        class Company(Party):
            __tablename__ = "companies"
            id: Mapped[int] = mapped_column(ForeignKey("parties.id"), primary_key=True)
            __mapper_args__ = {"polymorphic_identity": "company"}


def test_new_objects_belong_to_the_session(base):
    class Thing(TenantScoped, base):
        __tablename__ = "things"
        id: Mapped[int] = mapped_column(ShardKey, primary_key=True)

    thing = Thing()
    own([thing], "acme")
    assert thing.tenant_id == "acme"
    own([thing], "acme")
    own([thing], None)
    for session_tenant in ("beta", 1):
        with pytest.raises(TenantMismatchError):
            own([thing], session_tenant)
    with pytest.raises(TenantMismatchError):
        own([Thing()], None)
