"""Moving a shard while it is written to: what writers notice of it, and how long it takes."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import text

from benchmarks.harness import Bench
from benchmarks.writers import PACE_S, TENANT, WRITERS, Span, Write, counting, p99, wait, worst, writing
from shardkit import Settings, ShardKit, run_local
from shardkit.core.names import schema_name
from shardkit.local.binaries import find_postgres
from shardkit.local.databases import FreshDatabases, fresh_databases
from shardkit.move import run as moving
from shardkit.move.options import MoveOptions
from shardkit.schema.blueprint import Blueprint
from shardkit.schema.bootstrap import initialize

QUESTION = "What do writers notice while their shard goes to another server, and how long does it take?"
BUDGET_MS = 250
CORES_OF_A_COPY = 2  # one process reads, one writes
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


@dataclass(frozen=True, slots=True)
class Moved:
    """A move that soaks: when it ran, when each of its effects (the last time), and its figures."""

    id: int
    whole: Span
    effects: dict[str, Span]
    facts: dict[str, Any]

    @property
    def seconds(self) -> float:
        return self.whole[1] - self.whole[0]

    @property
    def fence(self) -> Span:
        """From when writers were held off until the map had changed."""
        return self.effects["Lock"][0], self.effects["Flip"][1]


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
        with psycopg.connect(self.urls[self.place()[0]], autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE")  # as autovacuum has done where a shard is in use

    def place(self) -> tuple[str, str, str]:
        """Server, schema, and the other server."""
        with psycopg.connect(self.settings.catalog_url) as catalog:
            row = catalog.execute("SELECT server, epoch FROM shardkit_catalog.placements WHERE shard = 0").fetchone()
        assert row is not None
        return row[0], schema_name(0, row[1]), next(name for name in self.urls if name != row[0])

    def move(self) -> Moved:
        """Move the shard to the other server."""
        options, spans = MoveOptions(budget_ms=BUDGET_MS), dict[str, Span]()

        def around(effect: Any, do: Callable[[Any], Any]) -> Any:
            began = time.perf_counter()
            try:
                return do(effect)
            finally:
                spans[type(effect).__name__] = began, time.perf_counter()

        began = time.perf_counter()
        begun = moving.begin(self.settings, 0, self.place()[2], options=options)
        ended = moving.go_on(self.settings, begun.id, options=options, around=around)
        return Moved(begun.id, (began, time.perf_counter()), spans, dict(ended.facts))

    def finish(self, move_id: int) -> None:
        moving.go_on(self.settings, move_id, "finish")


def _empty(bench: Bench, stage: Stage, *, rounds: int) -> None:
    taken = []
    for _ in range(rounds):
        moved = stage.move()
        stage.finish(moved.id)
        taken.append(moved.seconds)
    bench.record("empty_shard_s", taken, unit="s", goal=0.5)


def _loaded(bench: Bench, stage: Stage, spare: FreshDatabases, *, rounds: int) -> None:
    """The moves, and beside them what the same writers see when nothing moves at all, and when two processes merely count."""
    before, moves, worst_idle, ratio_dump, ratio_subscription = [], list[Moved](), [], [], []
    quiet, crowded = list[Span](), list[Span]()
    with writing(stage.settings) as log:
        for number in range(rounds):
            before.append(wait(1.0))
            moved = stage.move()
            moves.append(moved)
            time.sleep(0.2)
            stage.finish(moved.id)
            if number < bench.pick(5, 2):
                ratio_dump.append(moved.seconds / _dump(stage, spare))
                ratio_subscription.append(_subscription(stage, spare) / moved.seconds)
                quiet.append(wait(moved.seconds))
                with counting(CORES_OF_A_COPY):
                    crowded.append(wait(moved.seconds))
        for _ in range(bench.pick(5, 1)):
            worst_idle.append(_with_idle_transaction(stage, log, idle_s=bench.pick(6.0, 3.0)))
        writes = log()
    calm = [p99(writes, span) for span in before]
    bench.record("worst_write_ms", [worst(writes, moved.whole) for moved in moves], unit="ms", goal=15, goal_max=50)
    bench.record("worst_write_fence_ms", [worst(writes, moved.fence) for moved in moves], unit="ms")
    bench.record("worst_write_no_move_ms", [worst(writes, span) for span in quiet], unit="ms")
    bench.record("worst_write_two_busy_ms", [worst(writes, span) for span in crowded], unit="ms")
    bench.record("held_ms", [moved.facts["held_ms"] for moved in moves], unit="ms")
    bench.record("worst_write_idle_tx_ms", worst_idle, unit="ms", goal=BUDGET_MS * 1.2, goal_max=BUDGET_MS * 1.2)
    copying = [p99(writes, moved.effects["Copy"]) / was for moved, was in zip(moves, calm, strict=True)]
    bench.record("source_p99_ratio", copying, unit="ratio", goal=1.5)
    for key, effect in (("p99_indexes_ratio", "Complete"), ("p99_compare_ratio", "Verify")):
        found = [p99(writes, moved.effects[effect]) / was for moved, was in zip(moves, calm, strict=True)]
        bench.record(key, found, unit="ratio")
    bench.record(
        "p99_two_busy_ratio", [p99(writes, span) / was for span, was in zip(crowded, calm, strict=False)], unit="ratio"
    )
    bench.record("move_vs_offline_dump", ratio_dump, unit="ratio", goal=1.5)
    bench.record("move_vs_create_subscription_faster", ratio_subscription, unit="faster", goal=1.5, better="higher")
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
    span = began, time.perf_counter()
    stage.finish(begun.id)
    return worst(log(), span)


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
