"""The cache against a bare Redis GET, against the ORM, against delete-after-commit, and beside other caching libraries."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import partial
from importlib.util import find_spec
from time import perf_counter
from typing import Any
from uuid import UUID, uuid4

import msgspec
import redis
from redis import asyncio as redis_asyncio
from sqlalchemy import DateTime, Numeric, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Mapped, mapped_column

from benchmarks.delay_proxy import DelayProxy
from benchmarks.harness import Bench
from shardkit import AsyncShardKit, Cached, ListKey, Settings, ShardedBase, ShardKey, ShardKit, TenantScoped, run_local
from shardkit.local.databases import fresh_databases
from shardkit.schema.blueprint import from_metadata
from shardkit.schema.bootstrap import initialize

QUESTION = "What does a cached read, a miss and a write cost, and what happens to a herd and without Redis?"
TENANT = "tenant-1"
LOAD_ONE_WAY_S = 0.025


class Sharded(ShardedBase):
    """Its own metadata, apart from other models of the process."""

    __abstract__ = True
    metadata = type(ShardedBase.metadata)()


class Columns:
    """Seventeen columns of the usual types, with those of the base."""

    user_id: Mapped[int]
    title: Mapped[str]
    caption: Mapped[str]
    place: Mapped[str | None]
    public: Mapped[bool]
    hidden: Mapped[bool]
    taken: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    added: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    day: Mapped[date]
    price: Mapped[Decimal] = mapped_column(Numeric(12, 2))
    device: Mapped[UUID]
    tags: Mapped[dict[str, Any]] = mapped_column(JSONB)
    ratio: Mapped[float]
    likes: Mapped[int]
    width: Mapped[int]


class Photo(TenantScoped, Columns, Sharded):
    """Cached."""

    __tablename__ = "photos"
    id: Mapped[int] = mapped_column(ShardKey, primary_key=True)
    __cached__ = Cached(lists=[ListKey("user_id", limit=100)])


class Plain(TenantScoped, Columns, Sharded):
    """The same, not cached: for what others do with it."""

    __tablename__ = "plain_photos"
    id: Mapped[int] = mapped_column(ShardKey, primary_key=True)


def _values(number: int) -> dict[str, Any]:
    now = datetime.now(UTC)
    return {
        "user_id": number // 10, "title": f"photo {number}", "caption": "a caption of some forty letters, about", "place": None,
        "public": True, "hidden": False, "taken": now, "added": now, "day": now.date(), "price": Decimal("12.50"),
        "device": uuid4(), "tags": {"a": 1, "b": ["x", "y"]}, "ratio": 1.5, "likes": number, "width": 4000,
    }  # fmt: skip


def run(bench: Bench) -> None:
    """All keys."""
    with ExitStack() as stack:
        cluster = stack.enter_context(run_local(servers=1, trust=True))
        databases = stack.enter_context(fresh_databases(cluster.servers, 1))
        settings = Settings(catalog_url=databases.catalog_url, redis_url=cluster.redis_url)
        initialize(settings, servers=databases.servers, shard_count=4, blueprint=from_metadata(Sharded.metadata))
        place = Place(settings, str(cluster.redis_url), databases.servers)
        _hits(bench, place)
        _many(bench, place)
        _writes_and_misses(bench, place)
        asyncio.run(_async(bench, place))
        _herd(bench, place)
        _crowd(bench, place)
        _peers(bench, place)
        pid = cluster.pid("redis")
        assert pid is not None
        _frozen(bench, place, pid)


class Place:
    """A cluster with two hundred rows of one tenant."""

    def __init__(self, settings: Settings, redis_url: str, servers: dict[str, str]) -> None:
        self.settings, self.redis_url, self.servers = settings, redis_url, servers
        with ShardKit(settings=settings) as kit, kit.begin(TENANT) as session:
            photos = [Photo(**_values(n)) for n in range(200)]
            plain = [Plain(**_values(n)) for n in range(200)]
            session.add_all([*photos, *plain])
            session.flush()
            self.ids = [photo.id for photo in photos]
            self.plain = [photo.id for photo in plain]
            self.columns = [attribute.key for attribute in Plain.__mapper__.column_attrs]

    def kit(self, **given: Any) -> ShardKit:
        """A kit of its own."""
        return ShardKit(settings=replace(self.settings, **given))


def _hits(bench: Bench, place: Place) -> None:
    with place.kit() as kit, redis.Redis.from_url(place.redis_url) as client, kit.read(TENANT) as session:
        key = place.ids[0]
        kit.cache.get_row(Photo, key, tenant=TENANT)
        stored = client.keys("sk:*photos::*")[0]
        loads = kit.cache.counts.loads

        def get() -> None:
            assert client.get(stored)

        def row() -> None:
            assert kit.cache.get_row(Photo, key, tenant=TENANT)

        def orm() -> None:
            assert kit.cache.get(Photo, key, session=session)
            session.expunge_all()

        def session_get() -> None:
            assert transaction.get(Photo, key)
            transaction.expunge_all()

        with kit.session(TENANT) as transaction:
            variants = {"get": get, "row": row, "orm": orm, "session_get": session_get}
            taken = bench.interleave(variants, rounds=bench.pick(25, 9), block=bench.pick(200, 100), warmup=200)
        bench.ratio("hit_orm_vs_get", ours=taken["orm"], other=taken["get"], goal=1.6)
        bench.ratio("hit_row_vs_get", ours=taken["row"], other=taken["get"], goal=1.15)
        bench.ratio("hit_orm_vs_session_get", ours=taken["orm"], other=taken["session_get"], goal=0.30)
        bench.count("hit_loads", [kit.cache.counts.loads - loads])
        before = _evals(client)
        for _ in range(50):
            row()
        bench.count("hit_scripts", [_evals(client) - before])


def _evals(client: Any) -> int:
    stats = client.info("commandstats")
    return sum(about["calls"] for name, about in stats.items() if "eval" in name.lower())


def _many(bench: Bench, place: Place) -> None:
    with place.kit() as kit, kit.session(TENANT) as session:
        keys = place.ids[:100]
        kit.cache.get_many(Photo, keys, tenant=TENANT)

        def ours() -> None:
            assert len(kit.cache.get_many(Photo, keys, session=session)) == 100
            session.expunge_all()

        def rows() -> None:
            assert len(kit.cache.get_rows(Photo, keys, tenant=TENANT)) == 100

        def select_in() -> None:
            assert len(session.scalars(select(Photo).where(Photo.id.in_(keys))).all()) == 100
            session.expunge_all()

        taken = bench.interleave(
            {"ours": ours, "rows": rows, "select": select_in}, rounds=bench.pick(25, 9), block=bench.pick(30, 15)
        )
        bench.ratio("many100_vs_select", ours=taken["ours"], other=taken["select"], goal=0.35)
        bench.ratio("many100_rows_vs_select", ours=taken["rows"], other=taken["select"], goal=0.15)


def _writes_and_misses(bench: Bench, place: Place) -> None:
    """Naive is what everybody writes: GET, load, SET; and DEL after COMMIT."""
    with place.kit() as kit, redis.Redis.from_url(place.redis_url) as client:
        turn = iter(range(10**9))

        def write() -> None:
            with kit.begin(TENANT) as session:
                photo = session.get(Photo, place.ids[next(turn) % 200])
                assert photo is not None
                photo.likes += 1

        def naive_write() -> None:
            key = place.plain[next(turn) % 200]
            with kit.begin(TENANT) as session:
                photo = session.get(Plain, key)
                assert photo is not None
                photo.likes += 1
            client.delete(f"naive:{key}")

        taken = bench.interleave({"ours": write, "naive": naive_write}, rounds=bench.pick(25, 9), block=bench.pick(60, 30))
        bench.ratio("write_vs_delete_after_commit", ours=taken["ours"], other=taken["naive"], goal=1.25)

        def miss() -> None:
            key = place.ids[next(turn) % 200]
            with kit.read(TENANT) as session:
                assert kit.cache.get(Photo, key, session=session)

        def naive_miss() -> None:
            key = place.plain[next(turn) % 200]
            assert client.get(f"naive:{key}") is None
            with kit.read(TENANT) as session:
                photo = session.get(Plain, key)
                client.set(f"naive:{key}", _packed(photo, place.columns), ex=3600)

        misses: dict[str, list[list[float]]] = {"ours": [], "naive": []}
        task = bench.progress.add_task("miss", total=bench.pick(15, 7))
        for number in range(bench.pick(15, 7) + 1):
            for stored in client.scan_iter("sk:*photos::*", count=1000):
                client.delete(stored)
            client.delete(*[f"naive:{key}" for key in place.plain])
            for name, operation in (
                (("ours", miss), ("naive", naive_miss)) if number % 2 else (("naive", naive_miss), ("ours", miss))
            ):
                times = []
                for _ in range(200):
                    started = perf_counter()
                    operation()
                    times.append(perf_counter() - started)
                if number:
                    misses[name].append(times)
            bench.progress.advance(task)
        bench.ratio("miss_vs_naive", ours=misses["ours"], other=misses["naive"], goal=1.3)


def _packed(photo: Any, columns: list[str]) -> bytes:
    return msgspec.msgpack.encode([getattr(photo, name) for name in columns])


async def _async(bench: Bench, place: Place) -> None:
    async with AsyncShardKit(settings=place.settings) as kit, kit.read(TENANT) as session:
        client = redis_asyncio.Redis.from_url(place.redis_url)
        keys = place.ids[:40]
        await kit.cache.get_many(Photo, keys, tenant=TENANT)
        await client.set("bench:value", b"x" * 300)

        async def ours() -> None:
            await asyncio.gather(*(kit.cache.get_row(Photo, key, tenant=TENANT) for key in keys))

        async def gets() -> None:
            await asyncio.gather(*(client.get("bench:value") for _ in keys))

        async def get() -> None:
            for _ in range(40):
                await client.get("bench:value")

        await session.connection()
        taken = await bench.interleave_async(
            {"ours": ours, "gets": gets, "get": get}, rounds=bench.pick(25, 9), block=bench.pick(10, 5)
        )
        bench.ratio("async_coalesced_vs_get", ours=taken["ours"], other=taken["get"], goal=0.25)
        bench.ratio("async_coalesced_vs_gathered_gets", ours=taken["ours"], other=taken["gets"])
        await client.aclose()


def _herd(bench: Bench, place: Place) -> None:
    """Two hundred threads miss one key; PostgreSQL is fifty milliseconds away."""
    url = make_url(place.servers["pg1"])
    loads, slowest = [], []
    with DelayProxy(url.host or "127.0.0.1", url.port or 5432, one_way_s=LOAD_ONE_WAY_S) as proxy:
        far = url.set(host="127.0.0.1", port=proxy.port).render_as_string(hide_password=False)
        with place.kit(servers={"pg1": far}) as kit, ThreadPoolExecutor(200) as pool:
            for number in range(bench.pick(9, 4)):
                key = place.ids[number]
                kit.cache.invalidate(Photo, place.ids[199], tenant=TENANT)
                kit.cache.get_row(Photo, place.ids[199], tenant=TENANT)  # connections and the barrier are there
                kit.cache.invalidate(Photo, key, tenant=TENANT)
                started = perf_counter()
                with kit.read(TENANT) as session:
                    session.get(Photo, place.ids[198])
                load = perf_counter() - started
                before, gate = kit.cache.counts.loads, threading.Barrier(200)

                def ask(key: int = key, gate: threading.Barrier = gate) -> float:
                    gate.wait()
                    began = perf_counter()
                    assert kit.cache.get_row(Photo, key, tenant=TENANT)
                    return perf_counter() - began

                times = [future.result() for future in [pool.submit(ask) for _ in range(200)]]
                loads.append(kit.cache.counts.loads - before)
                slowest.append(max(times) / load)
    bench.count("herd_loads", loads, goal=1)
    bench.record("herd_slowest_over_load", slowest, unit="ratio", goal=1.6)


def _crowd(bench: Bench, place: Place) -> None:
    """More threads than connections."""
    errors = []
    with place.kit() as kit, ThreadPoolExecutor(500) as pool:
        for _ in range(bench.pick(3, 1)):
            asked = [pool.submit(kit.cache.get_row, Photo, place.ids[n % 200], tenant=TENANT) for n in range(2000)]
            errors.append(sum(one.exception() is not None for one in asked))
    bench.count("crowd_500_threads_errors", errors)


def _frozen(bench: Bench, place: Place, pid: int) -> None:
    first, after = [], []
    with place.kit() as kit:
        for number in range(bench.pick(5, 2)):
            key = place.ids[number]
            normal = _median(partial(_read, kit, key))
            kit.cache.get_row(Photo, key, tenant=TENANT)
            os.kill(pid, signal.SIGSTOP)
            try:
                started = perf_counter()
                kit.cache.get_row(Photo, key, tenant=TENANT)
                first.append((perf_counter() - started - normal) * 1000)
                after.append((_median(partial(kit.cache.get_row, Photo, key, tenant=TENANT)) - normal) * 1000)
            finally:
                os.kill(pid, signal.SIGCONT)
            store: Any = kit.cache._store
            while store.open:
                threading.Event().wait(0.05)
    bench.record("frozen_first_ms", first, unit="ms", goal=60)
    bench.record("frozen_next_ms", after, unit="ms", goal=1)


def _read(kit: ShardKit, key: int) -> None:
    with kit.read(TENANT) as session:
        session.get(Photo, key)


def _median(operation: Callable[[], object]) -> float:
    times = []
    for _ in range(30):
        started = perf_counter()
        operation()
        times.append(perf_counter() - started)
    return sorted(times)[15]


def _peers(bench: Bench, place: Place) -> None:
    """The same row as others keep it: a dictionary of its columns, by the library's own way to get it."""
    parts = make_url(place.redis_url)
    with place.kit() as kit, kit.read(TENANT) as session:
        key = place.ids[0]
        photo = session.get(Photo, key)
        value = {name: getattr(photo, name) for name in place.columns}

        def ours() -> None:
            assert kit.cache.get_row(Photo, key, tenant=TENANT)

        if find_spec("dogpile"):
            from dogpile.cache import make_region

            region = make_region().configure(
                "dogpile.cache.redis",
                arguments={"host": parts.host, "port": parts.port, "password": parts.password, "distributed_lock": False},
            )
            region.set("bench:dogpile", value)

            def dogpile() -> None:
                assert region.get_or_create("bench:dogpile", lambda: value)

            taken = bench.interleave({"ours": ours, "dogpile": dogpile}, rounds=bench.pick(15, 7), block=100)
            bench.ratio("hit_vs_dogpile", ours=taken["ours"], other=taken["dogpile"])
        else:
            bench.skip("dogpile.cache", "not installed (the extra 'bench')")
    asyncio.run(_async_peers(bench, place, value))


async def _async_peers(bench: Bench, place: Place, value: dict[str, Any]) -> None:
    parts = make_url(place.redis_url)
    async with AsyncShardKit(settings=place.settings) as kit:
        key = place.ids[0]

        async def ours() -> None:
            assert await kit.cache.get_row(Photo, key, tenant=TENANT)

        variants: dict[str, Callable[[], Awaitable[object]]] = {"ours": ours}
        if find_spec("cashews"):
            from cashews import Cache

            cashews = Cache()
            cashews.setup(place.redis_url)
            await cashews.set("bench:cashews", value)

            async def from_cashews() -> None:
                assert await cashews.get("bench:cashews")

            variants["cashews"] = from_cashews
        else:
            bench.skip("cashews", "not installed (the extra 'bench')")
        if find_spec("aiocache"):
            from aiocache import RedisCache

            aio = RedisCache(endpoint=parts.host, port=parts.port, password=parts.password)
            plain = json.dumps(value, default=str)
            await aio.set("bench:aiocache", plain)

            async def from_aiocache() -> None:
                assert json.loads(str(await aio.get("bench:aiocache")))

            variants["aiocache"] = from_aiocache
        else:
            bench.skip("aiocache", "not installed (the extra 'bench')")
        if len(variants) > 1:
            taken = await bench.interleave_async(variants, rounds=bench.pick(15, 7), block=100)
            for name in variants:
                if name != "ours":
                    bench.ratio(f"hit_vs_{name}", ours=taken["ours"], other=taken[name])
        with suppress(UnboundLocalError, NameError):
            await aio.close()
            await cashews.close()
