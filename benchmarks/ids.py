"""What an id that carries its shard costs beside a bigserial, and whether any id repeats or goes back."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from typing import Final

import psycopg
from sqlalchemy import BigInteger, Engine, create_engine, event
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import StaticPool

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


class Ours(Base):
    __tablename__ = "ours"
    id: Mapped[int] = mapped_column(ShardKey, primary_key=True)
    note: Mapped[str]


class Serial(Base):
    __tablename__ = "serial"
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
        # A connection each: the same backend state on both sides.
        singles = {
            name: single_insert(open_things.enter_context(psycopg.connect(url, autocommit=True)), name)
            for name in ("ours", "serial")
        }
        bench.versions["postgresql"] = f"{connection.info.server_version / 10000:.1f}"
        taken = bench.interleave(singles, rounds=bench.pick(40, 12), block=bench.pick(400, 200))
        bench.ratio("insert_vs_bigserial", ours=taken["ours"], other=taken["serial"], goal=1.20)

        engine = create_engine("postgresql+psycopg://", creator=lambda: connect_to_shard(url), poolclass=StaticPool)
        open_things.callback(engine.dispose)
        taken = bench.interleave(
            {
                "ours": lambda: bulk(engine, Ours, blocks=True),
                "serial": lambda: bulk(engine, Serial, blocks=False),
                "server default": lambda: bulk(engine, Ours, blocks=False),
            },
            rounds=bench.pick(25, 8),
            block=3,
        )
        bench.ratio("bulk_vs_bigserial", ours=taken["ours"], other=taken["serial"], goal=1.0)
        bench.ratio(
            "bulk_vs_server_default_faster",
            ours=taken["ours"],
            other=taken["server default"],
            goal=2.5,
            better="higher",
        )
        repeated, inversions = crowd(url, rounds=bench.pick(8, 2))
        bench.count("repeated", repeated)
        bench.count("inversions", inversions)


def furnish(connection: psycopg.Connection) -> None:
    connection.execute(f"CREATE SCHEMA {SCHEMA}")
    for statement in (*server_objects(), shard_objects(SHARD, SCHEMA)):
        connection.execute(statement)
    connection.execute(f"SET search_path TO {SCHEMA}")
    connection.execute("CREATE TABLE ours (id bigint PRIMARY KEY DEFAULT next_id(), note text NOT NULL)")
    connection.execute("CREATE TABLE serial (id bigserial PRIMARY KEY, note text NOT NULL)")


def single_insert(connection: psycopg.Connection, table: str) -> Callable[[], object]:
    """One row in autocommit, prepared, the id handed back: what an application waits for."""
    connection.execute(f"SET search_path TO {SCHEMA}")
    query = f"INSERT INTO {table} (note) VALUES (%s) RETURNING id"
    return lambda: connection.execute(query, ("a note",), prepare=True).fetchone()


def connect_to_shard(url: str) -> psycopg.Connection:
    return psycopg.connect(url, options=f"-csearch_path={SCHEMA}")


def bulk(engine: Engine, model: type[Ours | Serial], *, blocks: bool) -> None:
    """1,000 new objects in one transaction."""
    with Session(engine) as session:
        if blocks:
            event.listen(session, "before_flush", lambda session, *_: assign_ids(session, session.new))
        session.add_all([model(note="a note") for _ in range(OBJECTS)])
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
