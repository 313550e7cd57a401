"""Kinds of tables are declared on the model, and a foreign key that cannot hold is refused before anything starts."""

from __future__ import annotations

import pytest
from sqlalchemy import ForeignKey, Identity, MetaData, UniqueConstraint
from sqlalchemy.orm import Mapped, configure_mappers, mapped_column, registry

from shardkit import ShardedBase, ShardKey, TenantScoped
from shardkit.errors import TableKindError
from shardkit.orm.kinds import check_kinds, kind_of, tables_of
from shardkit.schema.blueprint import from_metadata


@pytest.fixture
def base():
    class Base(ShardedBase):
        __abstract__ = True
        metadata = MetaData()
        _sa_registry = registry(metadata=metadata)  # of its own: broken models must not trouble other tests'

    yield Base
    Base._sa_registry.dispose()


def model(base, name, kind=None, to=None, mixin=None, key=True):
    body = {"__tablename__": name, "id": mapped_column(primary_key=True), "__annotations__": {"id": Mapped[int]}}
    if kind:
        body["__shardkit__"] = {"kind": kind}
    if to:
        body["other"] = mapped_column(ForeignKey(f"{to}.id"))
        body["__annotations__"]["other"] = Mapped[int]
    return type(name.title(), (mixin, base) if mixin else (base,), body)


def test_kind_is_the_schema(base):
    assert kind_of(model(base, "orders").__table__) == "sharded"
    assert model(base, "plans", "global").__table__.schema == "shardkit_global"
    assert model(base, "countries", "reference").__table__.schema == "shardkit_reference"
    assert [t.name for t in tables_of(base.metadata, "sharded")] == ["orders"]


def test_only_sharded_tables_are_in_a_shard(base):
    model(base, "orders")
    model(base, "plans", "global")
    model(base, "countries", "reference")
    sql = from_metadata(base.metadata).sql
    assert "orders" in sql
    assert "plans" not in sql
    assert "countries" not in sql


def test_table_arguments_are_kept(base):
    class Plan(base):
        __tablename__ = "plans"
        __shardkit__ = {"kind": "global"}
        __table_args__ = (UniqueConstraint("name", name="one"), {"comment": "hello"})
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]

    assert Plan.__table__.comment == "hello"
    assert "one" in {c.name for c in Plan.__table__.constraints}


HOLDS = [
    (None, "orders"),
    ("global", "shardkit_global.plans"),
    ("global", "shardkit_reference.countries"),
    ("reference", "shardkit_reference.countries"),
    ("reference", "shardkit_global.plans"),
]
BREAKS = [
    (None, "shardkit_reference.countries", "replication"),
    (None, "shardkit_global.plans", "not in one database"),
    ("global", "orders", "not in one database"),
    ("reference", "orders", "not in one database"),
]


def three(base):
    model(base, "orders")
    model(base, "plans", "global")
    model(base, "countries", "reference")


@pytest.mark.parametrize(("kind", "to"), HOLDS)
def test_keys_that_hold_pass(base, kind, to):
    three(base)
    model(base, "things", kind, to)
    check_kinds(base.metadata)


@pytest.mark.parametrize(("kind", "to", "why"), BREAKS)
def test_keys_that_cannot_hold_are_refused(base, kind, to, why):
    three(base)
    thing = model(base, "things", kind, to)  # held: a class nobody holds is no model of the program
    with pytest.raises(TableKindError, match=f"'things'.*{why}"):
        configure_mappers()
    assert thing.__table__ in base.metadata.tables.values()
    with pytest.raises(TableKindError):
        from_metadata(base.metadata)


@pytest.mark.parametrize("said", [{"kind": "mirrored"}, {"placement": "global"}])
def test_unknown_kind_is_refused(base, said):
    with pytest.raises(TableKindError, match="Odd"):
        type("Odd", (base,), {"__tablename__": "odd", "__shardkit__": said, "id": mapped_column(primary_key=True)})


def test_global_table_of_tenants_or_with_a_shards_ids_is_refused(base):
    model(base, "mine", "global", mixin=TenantScoped)
    with pytest.raises(TableKindError, match="tenants"):
        check_kinds(base.metadata)


def test_shards_ids_are_refused_outside_shards(base):
    class Plan(base):
        __tablename__ = "plans"
        __shardkit__ = {"kind": "global"}
        id: Mapped[int] = mapped_column(ShardKey, primary_key=True)

    with pytest.raises(TableKindError, match="Identity"):
        check_kinds(base.metadata)


def test_identity_is_fine_there(base):
    class Plan(base):
        __tablename__ = "plans"
        __shardkit__ = {"kind": "global"}
        id: Mapped[int] = mapped_column(Identity(), primary_key=True)

    check_kinds(base.metadata)
