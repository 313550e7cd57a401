"""Never run: the type checker reads it. If a public annotation gets worse, this file no longer checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, assert_type

from sqlalchemy import Row, select
from sqlalchemy.orm import Mapped, mapped_column

from shardkit import (
    AsyncRoutedSession,
    AsyncShardKit,
    Cached,
    CacheStats,
    ListKey,
    Outcome,
    Route,
    RoutedSession,
    Settings,
    ShardedBase,
    ShardKey,
    ShardKit,
    ShardKitError,
    ShardMap,
    TenantScoped,
)
from shardkit.contrib import asgi, wsgi
from shardkit.contrib.prometheus import KitCollector
from shardkit.contrib.tenants import from_header, from_host
from shardkit.core.health.facts import Finding
from shardkit.core.tally import KitStats
from shardkit.doctor import diagnose


class Order(TenantScoped, ShardedBase):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(ShardKey, primary_key=True)
    note: Mapped[str]
    __cached__ = Cached(lists=[ListKey("note", limit=10)])


class Visit(TenantScoped, ShardedBase):
    __tablename__ = "visits"
    id: Mapped[int] = mapped_column(ShardKey, primary_key=True)
    tenant_id: Mapped[int]


def place(session: RoutedSession, note: str, *, times: int) -> int:
    session.add_all([Order(note=note) for _ in range(times)])
    return times


async def place_async(session: AsyncRoutedSession, note: str) -> str:
    session.add(Order(note=note))
    return note


def sync(kit: ShardKit) -> None:
    with kit.session("acme") as session:
        assert_type(session, RoutedSession)
        assert_type(session.get(Order, 1), Order | None)
        assert_type(session.scalars(select(Order.note)).all(), "list[str]")  # type: ignore[assert-type]  # a Sequence
        assert_type(session.route, Route)
        assert_type(session.tenant, str | int | None)
    with kit.begin(42) as session:
        assert_type(session, RoutedSession)
    with kit.tenant("acme", lock=True) as tenant, kit.read() as session:
        assert_type(tenant, str | int)
        assert_type(session, RoutedSession)
    assert_type(kit.run("acme", place, "note", times=3), int)
    kit.run("acme", place, "note", times="3")  # type: ignore[arg-type]  # found by ParamSpec
    kit.run("acme", place_async, "note")  # type: ignore[arg-type, unused-coroutine]  # a coroutine function in the sync kit
    assert_type(kit.locate("acme"), Route)
    assert_type(kit.map, ShardMap)
    kit.session(b"acme")  # type: ignore[arg-type]  # bytes are no tenant
    with kit.shard(3).session() as session:
        assert_type(session, RoutedSession)


async def asynchronous(kit: AsyncShardKit) -> None:
    async with kit.session("acme") as session:
        assert_type(session, AsyncRoutedSession)
        assert_type(await session.get(Order, 1), Order | None)
    async with kit.begin("acme") as session:
        assert_type(session, AsyncRoutedSession)
    assert_type(await kit.run("acme", place_async, "note"), str)


def together(kit: ShardKit) -> None:
    for row in kit.fan_out(select(Order.note)):
        assert_type(row, Row[Any])
    with kit.transaction("acme", "other") as tx:
        assert_type(tx["acme"], RoutedSession)
    assert_type(kit.cache.get(Order, 1, tenant="acme"), Order | None)
    assert_type(kit.cache.get_many(Order, [1, 2], tenant="acme"), dict[Any, Order])
    assert_type(kit.token("acme"), str)
    assert_type(kit.stats(), KitStats)
    assert_type(kit.stats().pools["pg1"].waiting, int)
    assert_type(kit.locate_by(Order.note, "x"), Route | None)


def around(kit: ShardKit, other: AsyncShardKit, given: Settings) -> None:
    wsgi.TenantMiddleware(lambda *_: [], kit=kit, tenant=from_header("X-Tenant"))
    asgi.TenantMiddleware(serve, kit=other, tenant=from_host("example.com"))
    wsgi.TenantMiddleware(lambda *_: [], kit=other, tenant=from_header("X-Tenant"))  # type: ignore[arg-type]  # not in WSGI
    KitCollector(other)
    assert_type(diagnose(given, checks=["roles"]).findings, tuple[Finding, ...])


async def serve(_scope: object, _receive: object, _send: object) -> None:
    """An ASGI application."""


def errors(error: ShardKitError) -> None:
    assert_type(error.outcome, Outcome)
    assert_type(error.retryable, bool)
    assert_type(error.code, str)


def settings() -> Settings:
    Settings(catalog_url="postgresql:///x", pool_size="3")  # type: ignore[arg-type]  # a str
    return Settings(catalog_url="postgresql:///x", servers={"pg1": "postgresql:///y"})


def cached(kit: ShardKit) -> None:
    assert_type(kit.cache.get(Order, 1, tenant="acme"), Order | None)
    assert_type(list(kit.cache.get_many(Order, [1, 2], tenant="acme").values()), list[Order])
    assert_type(kit.cache.list(Order, "x", by="note", tenant="acme"), Sequence[Order])
    assert_type(kit.cache.stats(), CacheStats)
    assert_type(kit.cache.drain(), int)


async def cached_async(kit: AsyncShardKit) -> None:
    assert_type(await kit.cache.get(Order, 1, tenant="acme"), Order | None)
    assert_type(kit.cache.stats(), CacheStats)
