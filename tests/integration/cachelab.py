"""Cached models, and a fleet of their own."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
from datetime import UTC, datetime

from fleet import Fleet, fleet_on
from sqlalchemy import Computed, DateTime, Enum, ForeignKey, ForeignKeyConstraint
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from shardkit import Cached, ListKey, ShardKey, TenantScoped
from shardkit.schema.blueprint import from_metadata


class Base(DeclarativeBase):
    pass


def _now():
    return datetime.now(UTC)


class Album(TenantScoped, Base):
    __tablename__ = "albums"
    id: Mapped[int] = mapped_column(ShardKey, primary_key=True)
    name: Mapped[str]


class Photo(TenantScoped, Base):
    __tablename__ = "photos"
    id: Mapped[int] = mapped_column(ShardKey, primary_key=True)
    user_id: Mapped[int]
    slug: Mapped[str] = mapped_column(unique=True)
    title: Mapped[str | None]
    taken: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    album_id: Mapped[int | None] = mapped_column(ForeignKey("albums.id", ondelete="CASCADE"))
    notes: Mapped[list[Note]] = relationship()
    __cached__ = Cached(unique=["slug"], lists=[ListKey("user_id", limit=3)])


class Note(TenantScoped, Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(ShardKey, primary_key=True)
    photo_id: Mapped[int | None] = mapped_column(ForeignKey("photos.id", ondelete="SET NULL"))
    text: Mapped[str]
    __cached__ = Cached(lists=[ListKey("photo_id", limit=10)])


class Page(TenantScoped, Base):
    __tablename__ = "pages"
    id: Mapped[int] = mapped_column(ShardKey, primary_key=True)
    book_id: Mapped[int]
    text: Mapped[str | None]
    changed_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), default=_now, onupdate=_now)
    __cached__ = Cached(lists=[ListKey("book_id", limit=5, newest="changed_at")])


class Account(TenantScoped, Base):
    __tablename__ = "accounts"
    id: Mapped[int] = mapped_column(ShardKey, primary_key=True)
    email: Mapped[str]
    address: Mapped[str] = mapped_column(Computed("lower(email)", persisted=True))
    __cached__ = Cached(unique=["address"])


class Entry(TenantScoped, Base):
    __tablename__ = "entries"
    id: Mapped[int] = mapped_column(ShardKey, primary_key=True)
    top_id: Mapped[int | None] = mapped_column(ForeignKey("entries.id", ondelete="CASCADE"))
    text: Mapped[str]
    __cached__ = Cached()


class Doc(TenantScoped, Base):
    __tablename__ = "docs"
    id: Mapped[int] = mapped_column(ShardKey, primary_key=True)
    about: Mapped[dict[str, list[str]]] = mapped_column(JSONB)
    __cached__ = Cached()


class Kind(enum.Enum):
    UP = "+"
    DOWN = "-"


class Vote(TenantScoped, Base):
    __tablename__ = "votes"
    item: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[Kind] = mapped_column(Enum(Kind, native_enum=False), primary_key=True)
    title: Mapped[str]
    __cached__ = Cached(lists=[ListKey("item", limit=5)])


class Genre(TenantScoped, Base):
    __tablename__ = "genres"
    id: Mapped[int] = mapped_column(ShardKey, primary_key=True)
    code: Mapped[str] = mapped_column(unique=True)


class Song(TenantScoped, Base):
    __tablename__ = "songs"
    id: Mapped[int] = mapped_column(ShardKey, primary_key=True)
    genre: Mapped[str]
    __table_args__ = (ForeignKeyConstraint(["tenant_id", "genre"], ["genres.tenant_id", "genres.code"], onupdate="CASCADE"),)
    __cached__ = Cached(lists=[ListKey("genre", limit=5)])


class Work(Base):
    __tablename__ = "works"
    id: Mapped[int] = mapped_column(ShardKey, primary_key=True)
    kind: Mapped[str]
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "work"}


class Opera(Work):
    __tablename__ = "operas"
    id: Mapped[int] = mapped_column(ForeignKey("works.id", ondelete="CASCADE"), primary_key=True)
    __mapper_args__ = {"polymorphic_identity": "opera"}


class Review(TenantScoped, Base):
    __tablename__ = "reviews"
    id: Mapped[int] = mapped_column(ShardKey, primary_key=True)
    work_id: Mapped[int] = mapped_column(ForeignKey("works.id", ondelete="CASCADE"))
    __cached__ = Cached()


BLUEPRINT = from_metadata(Base.metadata)


@dataclasses.dataclass(frozen=True)
class CachedFleet(Fleet):
    redis_url: str = ""

    def settings(self, **given):
        return super().settings(**{"redis_url": self.redis_url, **given})


@contextlib.contextmanager
def cached_fleet_on(cluster):
    with fleet_on(cluster, blueprint=BLUEPRINT) as fleet:
        yield CachedFleet(fleet.catalog_url, fleet.servers, fleet.map, redis_url=cluster.redis_url)
