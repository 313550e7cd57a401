"""The ShardKey column type: what DDL and revisions it becomes."""

from __future__ import annotations

import pytest
from sqlalchemy import BigInteger, Column, ForeignKey, MetaData, Table, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.schema import CreateTable

from shardkit.orm.keys import ShardKey


class Base(DeclarativeBase):
    pass


class Keyed:
    id: Mapped[int] = mapped_column(ShardKey, primary_key=True)


class Animal(Keyed, Base):
    __tablename__ = "animal"
    kind: Mapped[str]
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}


class Dog(Animal):
    __tablename__ = "dog"
    id: Mapped[int] = mapped_column(ShardKey, ForeignKey("animal.id"), primary_key=True)
    __mapper_args__ = {"polymorphic_identity": "dog"}


class Visit(Base):
    __tablename__ = "visit"
    id: Mapped[int] = mapped_column(ShardKey(), primary_key=True)
    animal_id: Mapped[int] = mapped_column(ShardKey, ForeignKey("animal.id"))


def column_ddl(table: Table, name: str) -> str:
    ddl = str(CreateTable(table).compile(dialect=postgresql.dialect()))
    return next(line.strip().rstrip(",").strip() for line in ddl.splitlines() if line.strip().startswith(f"{name} "))


@pytest.fixture(params=["declared", "copied"])
def tables(request):
    if request.param == "declared":
        return Base.metadata.tables
    copy = MetaData()
    return {table.name: table.to_metadata(copy) for table in Base.metadata.sorted_tables}


def test_a_primary_key_is_made_by_its_shard(tables) -> None:
    assert column_ddl(tables["animal"], "id") == "id BIGINT DEFAULT next_id() NOT NULL"
    assert column_ddl(tables["visit"], "id") == "id BIGINT DEFAULT next_id() NOT NULL"


def test_a_foreign_key_makes_no_ids(tables) -> None:
    assert column_ddl(tables["dog"], "id") == "id BIGINT NOT NULL"
    assert column_ddl(tables["visit"], "animal_id") == "animal_id BIGINT NOT NULL"


def test_a_default_of_the_programs_own_stays() -> None:
    table = Table("t", MetaData(), Column("id", ShardKey, primary_key=True, server_default=text("7")))
    assert column_ddl(table, "id") == "id BIGINT DEFAULT 7 NOT NULL"


def test_a_revision_names_the_public_type() -> None:
    assert f"{ShardKey.__module__}.{ShardKey()!r}" == "shardkit.ShardKey()"


def test_other_columns_are_left_alone() -> None:
    table = Table("t", MetaData(), Column("id", BigInteger, primary_key=True), Column("other", ShardKey))
    assert column_ddl(table, "id") == "id BIGSERIAL NOT NULL"
    assert column_ddl(table, "other") == "other BIGINT"
