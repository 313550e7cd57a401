"""A small real cluster for the tests of sessions: two servers, sixteen shards, and a mover made of plain SQL."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field

import psycopg
from psycopg import sql
from sqlalchemy import ForeignKey, Index, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from shardkit import Settings, ShardKey, TenantScoped
from shardkit.catalog.changes import change_server, flip
from shardkit.core.names import schema_name
from shardkit.db.shards import create_shard
from shardkit.local.databases import fresh_databases
from shardkit.schema.blueprint import from_metadata
from shardkit.schema.bootstrap import initialize


class Base(DeclarativeBase):
    pass


class Order(TenantScoped, Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(ShardKey, primary_key=True)
    note: Mapped[str] = mapped_column(unique=True)
    amount: Mapped[int] = mapped_column(server_default=text("0"))
    lines: Mapped[list[Line]] = relationship(back_populates="order", order_by="Line.id")
    __table_args__ = (Index("orders_by_amount", "amount"),)


class Line(TenantScoped, Base):
    __tablename__ = "lines"
    id: Mapped[int] = mapped_column(ShardKey, primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey("orders.id"))
    what: Mapped[str]
    order: Mapped[Order] = relationship(back_populates="lines")


class Person(TenantScoped, Base):
    __tablename__ = "people"
    id: Mapped[int] = mapped_column(ShardKey, primary_key=True)
    kind: Mapped[str]
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}


class Clerk(Person):
    desk: Mapped[str | None]
    __mapper_args__ = {"polymorphic_identity": "clerk"}


BLUEPRINT = from_metadata(Base.metadata)
SHARDS = 16


@dataclass(frozen=True)
class Fleet:
    """An initialised cluster, with the rights of its administrator."""

    catalog_url: str = field(repr=False)
    servers: dict[str, str] = field(repr=False)
    map: object = field(repr=False)

    def settings(self, **given):
        return Settings(catalog_url=self.catalog_url, **{"poll_interval_s": 60.0, **given})

    @contextlib.contextmanager
    def admin(self, server=None):
        """A plain connection as superuser to a server, or to the catalog."""
        url = self.catalog_url if server is None else self.servers[server]
        with psycopg.connect(url, autocommit=True) as connection:
            yield connection

    def close_epoch(self, route, *, epoch=None):
        """The fence: the schema gets the name of the epoch after the route's. Gives the server it is on."""
        with self.admin(route.server) as connection:
            rename(connection, route.schema, schema_name(route.shard, epoch or route.epoch + 1))
        return route.server

    def flip(self, route, *, server=None):
        """Tell the catalog."""
        with self.admin() as catalog:
            flip(catalog, route.shard, server=server or route.server, expected_epoch=route.epoch)

    @contextlib.contextmanager
    def at_another_address(self, server):
        """The map says that *server* is somewhere else, where it really is."""
        dsn = self.map.server(server).dsn
        with self.admin() as catalog:
            change_server(catalog, server, dsn=dsn.replace("127.0.0.1", "localhost"))
        try:
            yield
        finally:
            with self.admin() as catalog:
                change_server(catalog, server, dsn=dsn)

    def move(self, route, *, elsewhere):
        """Fence, then flip: on the same server, or with a copy of the rows to the other one."""
        target = self.other(route.server) if elsewhere else route.server
        if elsewhere:
            self.copy(route, target)
        self.close_epoch(route)
        self.flip(route, server=target)
        return target

    def copy(self, route, target):
        after = schema_name(route.shard, route.epoch + 1)
        with self.admin(route.server) as source, self.admin(target) as there:
            there.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(after)))
            create_shard(there, route.shard, after, BLUEPRINT.sql)
            for table in ("orders", "lines", "people"):
                read = sql.SQL("COPY {} TO STDOUT").format(sql.Identifier(route.schema, table))
                write = sql.SQL("COPY {} FROM STDIN").format(sql.Identifier(after, table))
                with source.cursor().copy(read) as out, there.cursor().copy(write) as into:
                    for data in out:
                        into.write(data)

    def other(self, server):
        return next(name for name in self.servers if name != server)

    def count(self, kit, tenant, where="true"):
        """The tenant's rows of orders as PostgreSQL has them, without any of our code in between."""
        route = kit.map.locate(tenant)
        with self.admin(route.server) as connection:
            query = sql.SQL("SELECT count(*) FROM {} WHERE tenant_id = %s AND " + where).format(
                sql.Identifier(route.schema, "orders")
            )
            return connection.execute(query, (tenant,)).fetchone()[0]


def rename(connection, before, after):
    connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(after)))
    connection.execute(sql.SQL("ALTER SCHEMA {} RENAME TO {}").format(sql.Identifier(before), sql.Identifier(after)))


@contextlib.contextmanager
def fleet_on(local_cluster, **given):
    with fresh_databases(local_cluster.servers, 2) as databases:
        found = initialize(
            Settings(catalog_url=databases.catalog_url),
            servers=databases.servers,
            **{"shard_count": SHARDS, "blueprint": BLUEPRINT, **given},
        )
        yield Fleet(databases.catalog_url, databases.servers, found)


def tenants_of(found, *, shard, count):
    """*count* tenants that share *shard*."""
    names = (f"tenant {number}" for number in range(100_000))
    return [name for name, _ in zip((n for n in names if found.shard_of(n) == shard), range(count), strict=False)]
