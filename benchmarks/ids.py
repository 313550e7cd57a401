"""What an id that carries its shard costs beside a bigserial, and whether any id repeats or goes back."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from typing import Final

import psycopg
from psycopg import sql
from sqlalchemy import BigInteger, Engine, create_engine, event, make_url
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import StaticPool
from sqlalchemy.schema import CreateTable

from benchmarks.harness import Bench
from benchmarks.idcheck import check, draw_many
from shardkit.core import names
from shardkit.db.shard_objects import server_objects, shard_objects
from shardkit.local import run_local
from shardkit.orm.keys import ShardKey, assign_ids

QUESTION: Final = "What does an id that carries its shard cost beside a bigserial, and does any repeat or go back?"
SHARD: Final = 291
SCHEMA: Final = names.schema_name(SHARD, 1)
OBJECTS: Final = 1000
CLIENTS: Final = 8


class Base(DeclarativeBase):
    pass


class Row:
    """A row as applications have them; narrower ones favour the bigserial, wider ones the ids sent along."""

    tenant_id: Mapped[str]
    customer_id: Mapped[int] = mapped_column(BigInteger)
    status: Mapped[str]
    total_cents: Mapped[int] = mapped_column(BigInteger)
    note: Mapped[str]


VALUES: Final[dict[str, object]] = {
    "tenant_id": "acme",
    "customer_id": 7,
    "status": "open",
    "total_cents": 1999,
    "note": "a note",
}


class Ours(Row, Base):
    __tablename__ = "ours"
    id: Mapped[int] = mapped_column(ShardKey, primary_key=True)


class Serial(Row, Base):
    __tablename__ = "serial"
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)


class NarrowOurs(Base):
    __tablename__ = "narrow_ours"
    id: Mapped[int] = mapped_column(ShardKey, primary_key=True)
    note: Mapped[str]


class NarrowSerial(Base):
    __tablename__ = "narrow_serial"
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    note: Mapped[str]


def run(bench: Bench) -> None:
    """One server, one shard; single inserts in autocommit, 1,000 objects in one transaction, then a crowd."""
    bench.params |= {"objects": OBJECTS, "clients": CLIENTS}
    with ExitStack() as open_things:
        cluster = open_things.enter_context(run_local(servers=1, redis=False, trust=True))
        url = cluster.servers[0].url
        connection = open_things.enter_context(psycopg.connect(url, autocommit=True))
        furnish(connection)
        singles = {name: single_insert(connection, name) for name in ("narrow_ours", "narrow_serial")}
        bench.versions["postgresql"] = f"{connection.info.server_version / 10000:.1f}"
        taken = bench.interleave(singles, rounds=bench.pick(40, 12), block=bench.pick(400, 200))
        bench.ratio("insert_vs_bigserial", ours=taken["narrow_ours"], other=taken["narrow_serial"], goal=1.20)

        engine = create_engine("postgresql+psycopg://", creator=lambda: connect_to_shard(url), poolclass=StaticPool)
        open_things.callback(engine.dispose)
        taken = bench.interleave(
            {
                "ours": lambda: bulk(engine, Ours, VALUES, blocks=True),
                "serial": lambda: bulk(engine, Serial, VALUES),
                "server default": lambda: bulk(engine, Ours, VALUES),
                "narrow ours": lambda: bulk(engine, NarrowOurs, {"note": "a note"}, blocks=True),
                "narrow serial": lambda: bulk(engine, NarrowSerial, {"note": "a note"}),
            },
            rounds=bench.pick(25, 8),
            block=3,
        )
        ours = taken["ours"]
        bench.ratio("bulk_vs_bigserial", ours=ours, other=taken["serial"], goal=1.0)
        bench.ratio("bulk_vs_server_default_faster", ours=ours, other=taken["server default"], goal=2.5, better="higher")
        bench.ratio("bulk_one_column_vs_bigserial", ours=taken["narrow ours"], other=taken["narrow serial"])
        repeated, inversions = crowd(url, rounds=bench.pick(8, 2))
        bench.count("repeated", repeated)
        bench.count("inversions", inversions)


def furnish(connection: psycopg.Connection) -> None:
    connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(SCHEMA)))
    for statement in (*server_objects(), shard_objects(SHARD, SCHEMA)):
        connection.execute(statement)
    connection.execute(sql.SQL("SET search_path TO {}").format(sql.Identifier(SCHEMA)))
    for table in Base.metadata.sorted_tables:
        dialect = make_url("postgresql+psycopg://").get_dialect()()
        connection.execute(str(CreateTable(table).compile(dialect=dialect)).encode())


def single_insert(connection: psycopg.Connection, table: str) -> Callable[[], object]:
    """One row in autocommit, prepared, the id handed back: what an application waits for."""
    query = sql.SQL("INSERT INTO {} (note) VALUES (%s) RETURNING id").format(sql.Identifier(table))
    return lambda: connection.execute(query, ("a note",), prepare=True).fetchone()


def connect_to_shard(url: str) -> psycopg.Connection:
    return psycopg.connect(url, options=f"-csearch_path={SCHEMA}")


def bulk(engine: Engine, model: type[Base], values: dict[str, object], *, blocks: bool = False) -> None:
    """1,000 new objects in one transaction."""
    with Session(engine) as session:
        if blocks:
            event.listen(session, "before_flush", lambda session, *_: assign_ids(session, session.new))
        session.add_all([model(**values) for _ in range(OBJECTS)])
        session.commit()


def crowd(url: str, *, rounds: int) -> tuple[list[int], list[int]]:
    """Repeated ids and inversions per round of eight processes that draw one, a hundred or two thousand at a time."""
    sizes = [1, 100, 1, 2000, 1, 1] * 5
    faults = []
    with ProcessPoolExecutor(CLIENTS, mp_context=get_context("spawn")) as pool:
        for _ in range(rounds):
            drawn = pool.map(draw_many, [url] * CLIENTS, [sizes] * CLIENTS, [SCHEMA] * CLIENTS)
            faults.append(check([draw for draws in drawn for draw in draws]))
    return [found.repeated for found in faults], [found.inversions for found in faults]
