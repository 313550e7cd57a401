"""Routed sessions against a plain SQLAlchemy Session on one unsharded database, and against other ways to reach a shard."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from uuid import uuid4

import psycopg
from psycopg import sql
from sqlalchemy import BigInteger, Identity, Text, create_engine, select
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.ext.horizontal_shard import ShardedSession, set_shard_id
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from benchmarks import pgbouncer
from benchmarks.delay_proxy import DelayProxy, added_rtt_s
from benchmarks.harness import Bench
from benchmarks.plproxy import NoPlproxyError, proxied
from shardkit import AsyncShardKit, Settings, ShardedBase, ShardKey, ShardKit, TenantScoped, run_local
from shardkit.catalog.changes import create_cluster, make_ready
from shardkit.core.shardmap import Server
from shardkit.db.connect import connect_admin
from shardkit.local import LocalCluster
from shardkit.local.databases import fresh_databases
from shardkit.schema.blueprint import from_metadata
from shardkit.schema.bootstrap import initialize
from shardkit.schema.trees import upgrade_catalog

QUESTION = "What does a routed unit of work cost, against a plain Session on one unsharded database?"
ROWS = 4  # of each tenant


class Sharded(ShardedBase):
    """Its own metadata, apart from other models of the process."""

    __abstract__ = True
    metadata = type(ShardedBase.metadata)()


class Photo(TenantScoped, Sharded):
    """As in a photo service; ours."""

    __tablename__ = "photos"
    id: Mapped[int] = mapped_column(ShardKey, primary_key=True)
    title: Mapped[str]
    likes: Mapped[int]
    place: Mapped[str | None]


class PlainBase(DeclarativeBase):
    """Of the unsharded database."""


class PlainPhoto(PlainBase):
    """The same columns and the same indexes, unsharded."""

    __tablename__ = "plain_photos"
    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    title: Mapped[str]
    likes: Mapped[int]
    place: Mapped[str | None]
    tenant_id: Mapped[str] = mapped_column(Text)


class Place:
    """One cluster with *shards* shards on two servers, and beside it one unsharded database; all hold the same rows."""

    def __init__(self, urls: dict[str, str], catalog_url: str, *, shards: int, tenants: int) -> None:
        self.urls, self.catalog_url = urls, catalog_url
        self.plain_url = urls["pg3"]
        settings = Settings(catalog_url=catalog_url)
        initialize(
            settings,
            servers={"pg1": urls["pg1"], "pg2": urls["pg2"]},
            shard_count=shards,
            blueprint=from_metadata(Photo.metadata),
        )
        self.owned: list[tuple[str, int]] = []
        self.plain_ids: list[int] = []
        plain = create_engine(_sqlalchemy(self.plain_url))
        PlainBase.metadata.create_all(plain)
        with ShardKit(settings=settings) as kit, Session(plain) as flat:
            flat.connection().exec_driver_sql("CREATE UNIQUE INDEX ON plain_photos (tenant_id, id)")
            for number in range(tenants):
                tenant = f"tenant-{number}"
                with kit.begin(tenant) as session:
                    photos = [Photo(title=f"photo {n}", likes=n) for n in range(ROWS)]
                    session.add_all(photos)
                    session.flush()
                    self.owned += [(tenant, photo.id) for photo in photos]
                rows = [PlainPhoto(title=f"photo {n}", likes=n, tenant_id=tenant) for n in range(ROWS)]
                flat.add_all(rows)
                flat.flush()
                self.plain_ids += [row.id for row in rows]
            flat.commit()
        plain.dispose()
        for url in urls.values():
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("VACUUM ANALYZE")


def run(bench: Bench) -> None:
    """All keys; each shard count on databases of its own, on the same servers."""
    rounds = bench.pick(15, 5)
    bench.params |= {
        "rows_per_tenant": ROWS,
        "transport": "TCP on loopback",
        "fsync": "on, data on tmpfs where it has room",
    }
    with run_local(servers=2, redis=False, trust=True) as cluster:
        for shards in (16, 256):
            with fresh_databases(cluster.servers, 3) as databases:
                place = Place(databases.servers, databases.catalog_url, shards=shards, tenants=bench.pick(1024, 256))
                _direct(bench, place, shards=shards, rounds=rounds)
                if shards == 256:
                    _peers(bench, place, rounds=rounds)
                    _stored_functions(bench, place, cluster, rounds=rounds)
                    _async(bench, place, rounds=rounds)
                    _far(bench, place, rounds=rounds)
                    _pooled(bench, place, rounds=rounds)
        _construct(bench, cluster, rounds=rounds)


def _direct(bench: Bench, place: Place, *, shards: int, rounds: int) -> None:
    draw = random.Random(shards)
    with _kit(place) as kit, _flat(place.plain_url) as engine:
        reads = bench.interleave(
            _reads(draw, place, kit, engine), rounds=rounds, block=bench.pick(400, 200), warmup=bench.pick(6 * 256, 512)
        )
        bench.ratio(f"read_{shards}", ours=reads["ours"], other=reads["plain"], goal=0.85 if shards == 16 else 0.95)
        writes = bench.interleave(
            _writes(draw, place, kit, engine), rounds=rounds, block=bench.pick(200, 100), warmup=bench.pick(3 * 256, 256)
        )
        bench.ratio(f"write_{shards}", ours=writes["ours"], other=writes["plain"], goal=1.10 if shards == 16 else 1.20)


def _reads(draw: random.Random, place: Place, kit: ShardKit, engine: Any) -> dict[str, Callable[[], object]]:
    def ours() -> None:
        tenant, key = draw.choice(place.owned)
        with kit.read(tenant) as session:
            assert session.get(Photo, key) is not None

    def plain() -> None:
        with Session(engine) as session:
            assert session.get(PlainPhoto, draw.choice(place.plain_ids)) is not None

    return {"ours": ours, "plain": plain}


def _writes(draw: random.Random, place: Place, kit: ShardKit, engine: Any) -> dict[str, Callable[[], object]]:
    def ours() -> None:
        tenant, _ = draw.choice(place.owned)
        with kit.begin(tenant) as session:
            session.add(Photo(title="new", likes=0))

    def plain() -> None:
        tenant, _ = draw.choice(place.owned)
        with Session(engine) as session, session.begin():
            session.add(PlainPhoto(title="new", likes=0, tenant_id=tenant))

    return {"ours": ours, "plain": plain}


def _peers(bench: Bench, place: Place, *, rounds: int) -> None:
    """The same read by other ways to reach one of 256 shards."""
    draw = random.Random(1)
    with _kit(place) as kit, ExitStack() as stack:
        engines = {name: stack.enter_context(_flat(place.urls[name])) for name in ("pg1", "pg2")}
        by_schema = {
            route.schema: engines[route.server].execution_options(schema_translate_map={None: route.schema})
            for route in map(kit.map.route, kit.map.placements)
        }
        connections = {name: stack.enter_context(psycopg.connect(place.urls[name], autocommit=True)) for name in engines}
        for connection in connections.values():
            connection.prepared_max, connection.prepare_threshold = 1000, 1
        texts = {
            schema: sql.SQL("SELECT id, title, likes, place, tenant_id FROM {} WHERE id = %s AND tenant_id = %s").format(
                sql.Identifier(schema, "photos")
            )
            for schema in by_schema
        }

        def translate_map() -> None:
            tenant, key = draw.choice(place.owned)
            with Session(by_schema[kit.locate(tenant).schema]) as session:
                assert session.get(Photo, key) is not None

        def horizontal_shard() -> None:
            tenant, key = draw.choice(place.owned)
            shard = kit.locate(tenant).schema

            def choose(*_: Any, **__: Any) -> Any:
                return shard

            with ShardedSession(
                shards=by_schema,
                shard_chooser=choose,
                identity_chooser=lambda *_, **__: [shard],
                execute_chooser=lambda *_: [shard],
            ) as session:
                assert session.scalars(select(Photo).where(Photo.id == key).options(set_shard_id(shard))).one() is not None

        def by_hand() -> None:
            tenant, key = draw.choice(place.owned)
            route = kit.locate(tenant)
            assert connections[route.server].execute(texts[route.schema], (key, tenant)).fetchone() is not None

        variants = {**_reads(draw, place, kit, engines["pg1"]), "translate_map": translate_map}
        variants |= {"horizontal_shard": horizontal_shard, "psycopg": by_hand}
        del variants["plain"]
        taken = bench.interleave(variants, rounds=rounds, block=bench.pick(200, 100), warmup=bench.pick(4 * 256, 512))
        bench.ratio("read_256_vs_horizontal_shard", ours=taken["ours"], other=taken["horizontal_shard"], goal=0.75)
        bench.ratio("read_256_vs_translate_map", ours=taken["ours"], other=taken["translate_map"])
        bench.ratio("read_256_vs_psycopg", ours=taken["ours"], other=taken["psycopg"])


def _stored_functions(bench: Bench, place: Place, cluster: LocalCluster, *, rounds: int) -> None:
    """PL/Proxy, which routes calls of functions: the row as a tuple, no ORM, so read it beside `read_256_vs_psycopg`."""
    draw = random.Random(4)
    with ExitStack() as stack:
        try:
            databases = stack.enter_context(fresh_databases(cluster.servers, 2))
            get = stack.enter_context(proxied(databases.servers, place.owned))
        except NoPlproxyError as exc:
            bench.skip("read_256_vs_plproxy", str(exc))
        else:
            kit = stack.enter_context(_kit(place))

            def plproxy() -> None:
                assert get(*draw.choice(place.owned)) is not None

            variants = {"ours": _reads(draw, place, kit, None)["ours"], "plproxy": plproxy}
            taken = bench.interleave(variants, rounds=rounds, block=bench.pick(200, 100), warmup=bench.pick(4 * 256, 512))
            bench.ratio("read_256_vs_plproxy", ours=taken["ours"], other=taken["plproxy"])
    with psycopg.connect(cluster.servers[0].url) as connection:
        found = connection.execute("SELECT FROM pg_available_extensions WHERE name = 'citus'").fetchone()
    why = "installed, but no way to measure it is written yet" if found else "not an extension of the servers that this starts"
    bench.skip("read_256_vs_citus", why)


def _async(bench: Bench, place: Place, *, rounds: int) -> None:
    async def measure() -> None:
        draw = random.Random(2)
        engine = create_async_engine(_sqlalchemy(place.plain_url), pool_size=10)
        async with AsyncShardKit(place.catalog_url) as kit:

            async def read() -> None:
                tenant, key = draw.choice(place.owned)
                async with kit.read(tenant) as session:
                    assert await session.get(Photo, key) is not None

            async def plain_read() -> None:
                async with AsyncSession(engine) as session:
                    assert await session.get(PlainPhoto, draw.choice(place.plain_ids)) is not None

            async def write() -> None:
                async with kit.begin(draw.choice(place.owned)[0]) as session:
                    session.add(Photo(title="new", likes=0))

            async def plain_write() -> None:
                async with AsyncSession(engine) as session, session.begin():
                    session.add(PlainPhoto(title="new", likes=0, tenant_id="tenant-1"))

            block = bench.pick(200, 100)
            reads = await bench.interleave_async(
                {"ours": read, "plain": plain_read}, rounds=rounds, block=block, warmup=bench.pick(6 * 256, 512)
            )
            bench.ratio("async_read_256", ours=reads["ours"], other=reads["plain"], goal=0.95)
            writes = await bench.interleave_async(
                {"ours": write, "plain": plain_write}, rounds=rounds, block=block, warmup=bench.pick(3 * 256, 256)
            )
            bench.ratio("async_write_256", ours=writes["ours"], other=writes["plain"], goal=1.20)
        await engine.dispose()

    asyncio.run(measure())


def _far(bench: Bench, place: Place, *, rounds: int) -> None:
    """The same with a network in between."""
    draw = random.Random(3)
    with ExitStack() as stack:
        far = {name: stack.enter_context(_delayed(url)) for name, url in place.urls.items()}
        kit = stack.enter_context(_kit(place, servers={"pg1": far["pg1"], "pg2": far["pg2"]}))
        engine = stack.enter_context(_flat(far["pg3"]))
        bench.params["rtt_ms"] = round(added_rtt_s() * 1e3, 3)
        block = bench.pick(100, 50)
        # as warm as _direct: PostgreSQL plans a prepared statement anew for each of its first five executions
        warmup = bench.pick(6 * 256, 512)
        reads = bench.interleave(_reads(draw, place, kit, engine), rounds=rounds, block=block, warmup=warmup)
        bench.ratio("read_256_rtt", ours=reads["ours"], other=reads["plain"], goal=0.50)
        writes = bench.interleave(_writes(draw, place, kit, engine), rounds=rounds, block=block, warmup=bench.pick(300, 150))
        bench.ratio("write_256_rtt", ours=writes["ours"], other=writes["plain"], goal=0.90)


def _pooled(bench: Bench, place: Place, *, rounds: int) -> None:
    """Both through PgBouncer in transaction mode, where nobody may keep prepared statements."""
    if pgbouncer.PROGRAM is None:
        bench.skip("read_256_pgbouncer, write_256_pgbouncer", "PgBouncer is not installed (Debian's package pgbouncer)")
        return
    draw = random.Random(4)
    with ExitStack() as stack:
        ways = {}
        for name, url in place.urls.items():
            pgbouncer.make_login(url)
            ways[name] = stack.enter_context(pgbouncer.pgbouncer(url, default_pool_size=5))
        settings = {name: ways[name](pgbouncer.LOGIN) for name in ("pg1", "pg2")}
        kit = stack.enter_context(_kit(place, servers=settings, pooler="pgbouncer-transaction"))
        engine = stack.enter_context(_flat(ways["pg3"](None), connect_args={"prepare_threshold": None}))
        reads = bench.interleave(
            _reads(draw, place, kit, engine), rounds=rounds, block=bench.pick(200, 100), warmup=bench.pick(600, 300)
        )
        bench.ratio("read_256_pgbouncer", ours=reads["ours"], other=reads["plain"])
        writes = bench.interleave(
            _writes(draw, place, kit, engine), rounds=rounds, block=bench.pick(100, 50), warmup=bench.pick(300, 150)
        )
        bench.ratio("write_256_pgbouncer", ours=writes["ours"], other=writes["plain"])


def _construct(bench: Bench, cluster: LocalCluster, *, rounds: int) -> None:
    """A session's making and closing must not depend on the number of shards; no statement is sent, so maps are enough."""
    with ExitStack() as stack:
        kits = {}
        for shards in (4, 4096):
            databases = stack.enter_context(fresh_databases(cluster.servers, 1))
            settings = Settings(catalog_url=databases.catalog_url)
            upgrade_catalog(settings)
            with connect_admin(settings.catalog_url, settings) as catalog:
                server = Server("pg1", databases.servers["pg1"], uuid4())
                create_cluster(
                    catalog,
                    cluster_id=uuid4(),
                    shard_count=shards,
                    tenant_type="str",
                    servers={"pg1": server},
                    placements=dict.fromkeys(range(shards), "pg1"),
                )
                make_ready(catalog)
            kits[str(shards)] = stack.enter_context(ShardKit(settings=settings))

        def make(kit: ShardKit) -> Callable[[], None]:
            def construct() -> None:
                kit.session("tenant-1").close()

            return construct

        taken = bench.interleave({n: make(kit) for n, kit in kits.items()}, rounds=rounds, block=1000)
        bench.ratio("construct_4096_vs_4", ours=taken["4096"], other=taken["4"], goal=1.2)


def _kit(place: Place, **given: Any) -> ShardKit:
    return ShardKit(place.catalog_url, **given)


@contextmanager
def _flat(url: str, **given: Any) -> Iterator[Any]:
    engine = create_engine(_sqlalchemy(url), pool_size=10, **given)
    try:
        yield engine
    finally:
        engine.dispose()


@contextmanager
def _delayed(url: str) -> Iterator[str]:
    parts = make_url(url)
    with DelayProxy(parts.host or "127.0.0.1", parts.port or 5432) as proxy:
        yield parts.set(port=proxy.port).render_as_string(hide_password=False)


def _sqlalchemy(url: str) -> str:
    return make_url(url).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
