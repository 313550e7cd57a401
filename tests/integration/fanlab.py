"""A cluster and, beside it, one unsharded database with the same rows: what a fan-out must be equal to."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import Engine, ForeignKey, Numeric, create_engine, insert
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Mapped, mapped_column, relationship

from shardkit import Settings, ShardedBase, ShardKey, ShardKit, TenantScoped
from shardkit.local import LocalCluster
from shardkit.local.databases import fresh_databases
from shardkit.schema.blueprint import from_metadata
from shardkit.schema.bootstrap import initialize

SHARDS = 16
WORLDS = 6
"""Sets of rows told apart by a column: nothing, one row, nulls only, few values, many."""


class Sharded(ShardedBase):
    __abstract__ = True
    metadata = type(ShardedBase.metadata)()


class Item(TenantScoped, Sharded):
    __tablename__ = "items"
    id: Mapped[int] = mapped_column(ShardKey, primary_key=True)
    world: Mapped[int]
    i: Mapped[int | None]
    n: Mapped[Decimal | None] = mapped_column(Numeric)
    f: Mapped[float | None]
    t: Mapped[str | None]
    d: Mapped[date | None]
    ts: Mapped[datetime | None]
    u: Mapped[UUID | None]
    flag: Mapped[bool | None]
    lines: Mapped[list[Line]] = relationship(back_populates="item")


class Line(TenantScoped, Sharded):
    __tablename__ = "lines"
    id: Mapped[int] = mapped_column(ShardKey, primary_key=True)
    item_id: Mapped[int] = mapped_column(ForeignKey("items.id"))
    q: Mapped[int]
    item: Mapped[Item] = relationship(back_populates="lines")


TEXTS = ["", "a", "A", "b", "ä", "aa", "a b", "€", "\U0001f600", "Z", "z", "\uffff", "_"]
NUMBERS = [Decimal(text) for text in ("0", "1", "1.5", "-2.25", "1.50", "100000000000000000000.001", "NaN", "-0.0003", "7")]
FLOATS = [0.0, -0.0, 0.25, 1.5, -2.5, 1e6, float("inf"), float("-inf"), float("nan")]
START = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, repr=False)  # Hypothesis prints what it gives a test, and the reason of a failure comes after it
class Lab:
    kit: ShardKit
    flat: Engine
    settings: Settings
    urls: dict[str, str]
    tenants: list[str]


def _rows(draw: random.Random, world: int, tenant: str, key: int) -> dict[str, Any]:
    def some(values: list[Any]) -> Any:
        return None if world == 2 or draw.random() < 0.2 else draw.choice(values)

    finite = world == 3
    return {
        "id": key,
        "tenant_id": tenant,
        "world": world,
        "i": some([0, 1, 2, 3, -5, 1000]),
        "n": some(NUMBERS[:5] if finite else NUMBERS),
        "f": some(FLOATS[:5] if finite else FLOATS),
        "t": some(TEXTS[:4] if finite else TEXTS),
        "d": some([date(2026, 1, day) for day in (1, 2, 3)]),
        "ts": some([START + timedelta(hours=hour) for hour in range(4)]),
        "u": some([UUID(int=n << 120) for n in range(4)]),
        "flag": some([True, False]),
    }


@contextmanager
def laboratory(cluster: LocalCluster, *, shards: int = SHARDS) -> Iterator[Lab]:
    """Both, filled."""
    draw = random.Random(7)
    with fresh_databases(cluster.servers, 3) as databases:
        urls = {name: url for name, url in databases.servers.items() if name != "pg3"}
        settings = Settings(catalog_url=databases.catalog_url, move_wait_s=2)
        initialize(settings, servers=urls, shard_count=shards, blueprint=from_metadata(Item.metadata))
        flat = create_engine(make_url(databases.servers["pg3"]).set(drivername="postgresql+psycopg"))
        with flat.begin() as connection:
            connection.exec_driver_sql("CREATE SCHEMA shardkit")
            for name, given, result in (("shardkit.protect", "regclass", "boolean"), ("next_id", "", "bigint")):
                made = f"CREATE FUNCTION {name}({given}) RETURNS {result} LANGUAGE sql RETURN NULL::{result}"
                connection.exec_driver_sql(made)
            Item.metadata.create_all(connection)
        tenants = [f"tenant-{n}" for n in range(3 * shards)]
        with ShardKit(settings=settings) as kit:
            items: dict[str, list[dict[str, Any]]] = {tenant: [] for tenant in tenants}
            key = 0
            for world, count in enumerate((0, 1, 12, 60, 200, 40)):
                for _ in range(count):
                    key += 1
                    tenant = draw.choice(tenants[:2] if world == 5 else tenants)
                    items[tenant].append(_rows(draw, world, tenant, key))
            for tenant, rows in items.items():
                lines = [
                    {"id": row["id"] * 10 + n, "tenant_id": tenant, "item_id": row["id"], "q": draw.randrange(5)}
                    for row in rows
                    for n in range(draw.randrange(4))
                ]
                with kit.begin(tenant) as session, flat.begin() as connection:
                    for table, found in ((Item, rows), (Line, lines)):
                        if found:
                            session.execute(insert(table), found)
                            connection.execute(insert(table.__table__), found)
            yield Lab(kit, flat, settings, urls, tenants)
        flat.dispose()
