"""Moving a shard while it is written to: what writers notice of it, and how long it takes."""

from __future__ import annotations

import multiprocessing
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import text

from benchmarks.harness import Bench
from benchmarks.statistics import quantile
from shardkit import Settings, ShardKit, run_local
from shardkit.core.names import schema_name
from shardkit.local.binaries import find_postgres
from shardkit.local.databases import FreshDatabases, fresh_databases
from shardkit.move import run as moving
from shardkit.move.options import MoveOptions
from shardkit.schema.blueprint import Blueprint
from shardkit.schema.bootstrap import initialize

QUESTION = "What do writers notice while their shard goes to another server, and how long does it take?"
WRITERS = 4
PACE_S = 0.02  # four writers, 200 transactions a second
BUDGET_MS = 250
TENANT = "acme"
TABLES = """
CREATE TABLE users (id bigint PRIMARY KEY, name text NOT NULL UNIQUE, about text NOT NULL);
CREATE TABLE photos (id bigint DEFAULT next_id() PRIMARY KEY, owner bigint NOT NULL, title text NOT NULL, likes int NOT NULL,
                     taken timestamptz NOT NULL, body text NOT NULL);
CREATE INDEX ON photos (owner, taken DESC);
CREATE INDEX ON photos (likes);
CREATE TABLE comments (id bigint DEFAULT next_id() PRIMARY KEY, photo bigint NOT NULL, author bigint NOT NULL,
                       said text NOT NULL);
CREATE INDEX ON comments (photo);
CREATE INDEX ON comments (author);
CREATE TABLE likes (photo bigint, person bigint, at timestamptz NOT NULL, PRIMARY KEY (photo, person));
CREATE INDEX ON likes (person, at);
CREATE TABLE writes (writer int, n int, PRIMARY KEY (writer, n))
"""
"""Four tables with the indexes that such an application has (about 40 % of the heap again), and the one that is written to."""
FILL = (
    "INSERT INTO users SELECT n, 'user ' || n, repeat('x', 80) FROM generate_series(1, :mb * 250) n",
    (
        "INSERT INTO photos (owner, title, likes, taken, body) SELECT hashint8(n) & 8191, 'photo ' || n, n % 1000, "
        "now() - n * interval '1 s', repeat(md5(n::text), 6) FROM generate_series(1, :mb * 1600) n"
    ),
    (
        "INSERT INTO comments (photo, author, said) SELECT hashint8(n) & 1048575, hashint8(-n) & 8191, repeat(md5(n::text), 2) "
        "FROM generate_series(1, :mb * 2800) n"
    ),
    "INSERT INTO likes SELECT hashint8(n) & 1048575, n, now() FROM generate_series(1, :mb * 3600) n",
)


@dataclass(frozen=True, slots=True)
class Write:
    """One write as its client saw it."""

    writer: int
    n: int
    began: float
    seconds: float
    error: str | None


def run(bench: Bench) -> None:
    """All keys."""
    size_mb, rounds = bench.pick(100, 10), bench.pick(20, 5)
    bench.params |= {"size_mb": size_mb, "writers": WRITERS, "writes_per_s": round(WRITERS / PACE_S), "budget_ms": BUDGET_MS}
    with run_local(servers=2, redis=False, trust=True) as cluster:
        with fresh_databases(cluster.servers, 2) as databases:
            _empty(bench, Stage(databases), rounds=bench.pick(9, 5))
        with fresh_databases(cluster.servers, 2) as databases, fresh_databases(cluster.servers[::-1], 2) as spare:
            stage = Stage(databases)
            stage.fill(size_mb)
            _loaded(bench, stage, spare, rounds=rounds)
    bench.skip("citus", "no Citus among the servers this can start")


class Stage:
    """A cluster of one shard on two servers."""

    def __init__(self, databases: FreshDatabases) -> None:
        self.urls = databases.servers
        self.settings = Settings(catalog_url=databases.catalog_url)
        initialize(self.settings, servers=databases.servers, shard_count=1, blueprint=Blueprint(TABLES))

    def fill(self, size_mb: int) -> None:
        with ShardKit(settings=self.settings) as kit, kit.begin(TENANT) as session:
            for rows in FILL:
                session.execute(text(rows), {"mb": size_mb})

    def place(self) -> tuple[str, str, str]:
        """Server, schema, and the other server."""
        with psycopg.connect(self.settings.catalog_url) as catalog:
            row = catalog.execute("SELECT server, epoch FROM shardkit_catalog.placements WHERE shard = 0").fetchone()
        assert row is not None
        return row[0], schema_name(0, row[1]), next(name for name in self.urls if name != row[0])

    def move(self) -> tuple[int, float, dict[str, Any]]:
        """Move the shard to the other server: the move, seconds until it soaks, its figures."""
        options = MoveOptions(budget_ms=BUDGET_MS)
        began = time.perf_counter()
        begun = moving.begin(self.settings, 0, self.place()[2], options=options)
        ended = moving.go_on(self.settings, begun.id, options=options)
        return begun.id, time.perf_counter() - began, dict(ended.facts)

    def finish(self, move_id: int) -> None:
        moving.go_on(self.settings, move_id, "finish")


def _empty(bench: Bench, stage: Stage, *, rounds: int) -> None:
    taken = []
    for _ in range(rounds):
        move_id, seconds, _facts = stage.move()
        stage.finish(move_id)
        taken.append(seconds)
    bench.record("empty_shard_s", taken, unit="s", goal=0.5)


def _loaded(bench: Bench, stage: Stage, spare: FreshDatabases, *, rounds: int) -> None:
    worst, worst_idle, calm, during, ratio_dump, ratio_subscription, held = [], [], [], [], [], [], []
    with writing(stage.settings) as log:
        for number in range(rounds):
            began = time.perf_counter()
            time.sleep(1.0)
            copied = time.perf_counter()
            move_id, seconds, facts = stage.move()
            ended = time.perf_counter()
            time.sleep(0.2)
            stage.finish(move_id)
            writes = log()
            calm.append(_p99(writes, began, copied))
            during.append(_p99(writes, copied, copied + facts["copy_s"]))
            worst.append(max(w.seconds * 1000 for w in writes if copied <= w.began + w.seconds and w.began <= ended))
            held.append(facts["held_ms"])
            if number < bench.pick(5, 2):
                ratio_dump.append((seconds, _dump(stage, spare)))
                ratio_subscription.append((seconds, _subscription(stage, spare)))
        for _ in range(bench.pick(5, 1)):
            worst_idle.append(_with_idle_transaction(stage, log, idle_s=bench.pick(6.0, 3.0)))
        writes = log()
    bench.record("worst_write_ms", worst, unit="ms", goal=15, goal_max=50)
    bench.record("held_ms", held, unit="ms")
    bench.record("worst_write_idle_tx_ms", worst_idle, unit="ms", goal=BUDGET_MS * 1.2, goal_max=BUDGET_MS * 1.2)
    bench.record("source_p99_ratio", [b / a for a, b in zip(calm, during, strict=True)], unit="ratio", goal=1.5)
    bench.record("move_vs_offline_dump", [ours / other for ours, other in ratio_dump], unit="ratio", goal=1.5)
    faster = [other / ours for ours, other in ratio_subscription]
    bench.record("move_vs_create_subscription_faster", faster, unit="faster", goal=1.5, better="higher")
    _judge(bench, stage, writes)


def _judge(bench: Bench, stage: Stage, writes: list[Write]) -> None:
    server, schema, _ = stage.place()
    with psycopg.connect(stage.urls[server]) as connection:
        rows = connection.execute(sql.SQL("SELECT writer, n FROM {}").format(sql.Identifier(schema, "writes"))).fetchall()
    acked = {(w.writer, w.n) for w in writes if w.error is None}
    bench.params["writes"] = len(writes)
    bench.count("errors", [sum(w.error is not None for w in writes)])
    bench.count("lost", [len(acked - set(rows))])
    bench.count("doubled", [len(rows) - len(set(rows))])


def _p99(writes: list[Write], since: float, until: float) -> float:
    found = [w.seconds for w in writes if since <= w.began <= until] or [w.seconds for w in writes[-50:]]
    return quantile(found, 0.99)


def _with_idle_transaction(stage: Stage, log: Callable[[], list[Write]], *, idle_s: float) -> float:
    """The worst write while somebody idles in a transaction from just before the fence on."""
    server, schema, _ = stage.place()
    began = time.perf_counter()
    with psycopg.connect(stage.urls[server]) as idle:
        timer = threading.Timer(idle_s, idle.rollback)

        def around(effect: Any, do: Callable[[Any], Any]) -> Any:
            if type(effect).__name__ == "Enter" and effect.step.word == "fence":
                idle.execute(sql.SQL("LOCK TABLE {} IN ROW EXCLUSIVE MODE").format(sql.Identifier(schema, "writes")))
                timer.start()
            return do(effect)

        options = MoveOptions(budget_ms=BUDGET_MS)
        begun = moving.begin(stage.settings, 0, stage.place()[2], options=options)
        moving.go_on(stage.settings, begun.id, options=options, around=around)
        timer.join()
    ended = time.perf_counter()
    stage.finish(begun.id)
    return max(w.seconds * 1000 for w in log() if began <= w.began + w.seconds and w.began <= ended)


def _dump(stage: Stage, spare: FreshDatabases) -> float:
    """Seconds of ``pg_dump | psql`` of the same shard into an empty database of the other server."""
    server, schema, other = stage.place()
    began = time.perf_counter()
    _pipe(stage.urls[server], _spare_url(stage, spare, other), schema)
    seconds = time.perf_counter() - began
    _forget(_spare_url(stage, spare, other), schema)
    return seconds


def _subscription(stage: Stage, spare: FreshDatabases) -> float:
    """Seconds of a plain CREATE SUBSCRIPTION with its own copy of the same shard."""
    server, schema, other = stage.place()
    target = _spare_url(stage, spare, other)
    began = time.perf_counter()
    _pipe(stage.urls[server], target, schema, "--schema-only")
    with (
        psycopg.connect(stage.urls[server], autocommit=True) as source,
        psycopg.connect(target, autocommit=True) as there,
    ):
        source.execute(sql.SQL("CREATE PUBLICATION plain FOR TABLES IN SCHEMA {}").format(sql.Identifier(schema)))
        there.execute(
            sql.SQL("CREATE SUBSCRIPTION plain CONNECTION {} PUBLICATION plain").format(sql.Literal(stage.urls[server]))
        )
        while there.execute("SELECT count(*) FROM pg_subscription_rel WHERE srsubstate <> 'r'").fetchone() != (0,):
            time.sleep(0.01)
        seconds = time.perf_counter() - began
        there.execute("DROP SUBSCRIPTION plain")
        source.execute("DROP PUBLICATION plain")
    _forget(target, schema)
    return seconds


def _spare_url(stage: Stage, spare: FreshDatabases, server: str) -> str:
    """The empty database that is on the same PostgreSQL as *server*."""
    port = conninfo_to_dict(stage.urls[server])["port"]
    return next(url for url in spare.servers.values() if conninfo_to_dict(url)["port"] == port)


def _forget(url: str, schema: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(schema)))


def _pipe(source: str, target: str, schema: str, *options: str) -> None:
    with psycopg.connect(target, autocommit=True) as connection:  # what the dump leans on
        connection.execute("CREATE SCHEMA IF NOT EXISTS shardkit")
        connection.execute(
            "CREATE OR REPLACE FUNCTION shardkit.next_id(ids regclass, origin regclass, shard integer) RETURNS bigint "
            "LANGUAGE sql RETURN 1"
        )
    programs = find_postgres()
    dump = subprocess.Popen([programs["pg_dump"], "-n", schema, *options, source], stdout=subprocess.PIPE)
    subprocess.run(
        [programs["psql"], "-X", "-q", "-v", "ON_ERROR_STOP=1", "-o", "/dev/null", target], stdin=dump.stdout, check=True
    )
    if dump.wait():
        raise RuntimeError("pg_dump failed")


@contextmanager
def writing(settings: Settings) -> Iterator[Callable[[], list[Write]]]:
    """Writers in processes of their own while the block lasts; gives what they have logged so far."""
    spawn = multiprocessing.get_context("spawn")
    stop, ready = spawn.Event(), spawn.Semaphore(0)
    pipes, processes, log = [], [], []
    for writer in range(WRITERS):
        ours, theirs = spawn.Pipe(duplex=False)
        process = spawn.Process(target=_write, args=(str(settings.catalog_url), writer, stop, ready, theirs), daemon=True)
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    for _ in processes:
        ready.acquire()

    def so_far() -> list[Write]:
        for pipe in pipes:
            while pipe.poll():
                log.extend(pipe.recv())
        return log

    def keep_reading() -> None:
        while not stop.wait(0.05):
            with lock:
                so_far()

    lock = threading.Lock()
    reader = threading.Thread(target=keep_reading, daemon=True)
    reader.start()

    def read() -> list[Write]:
        time.sleep(0.15)
        with lock:
            return list(so_far())

    try:
        yield read
    finally:
        stop.set()
        reader.join()
        for process in processes:
            process.join(timeout=10)


def _write(catalog_url: str, writer: int, stop: Any, ready: Any, pipe: Any) -> None:
    done: list[Write] = []
    with ShardKit(catalog_url=catalog_url) as kit:

        def unit(session: Any, n: int) -> None:
            session.execute(text("INSERT INTO writes VALUES (:writer, :n)"), {"writer": writer, "n": n})

        n, since = 0, time.perf_counter()
        while not stop.is_set():
            n += 1
            began, error = time.perf_counter(), None
            try:
                kit.run(TENANT, unit, n)
            except Exception as exc:
                error = repr(exc)
            done.append(Write(writer, n, began, time.perf_counter() - began, error))
            if n == 20:
                ready.release()
            if time.perf_counter() - since > 0.05:
                pipe.send(done)
                done, since = [], time.perf_counter()
            time.sleep(PACE_S)
        pipe.send(done)
        pipe.close()
