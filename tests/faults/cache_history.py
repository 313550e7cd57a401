"""Checks the history of reads and writes under faults: a read never returns less than anybody knew when it began.

``python tests/faults/cache_history.py --reads 1000000`` runs it for long. Every row is a register whose ``version`` rises
with each committed write. Writers and readers are processes; whoever learns of a version (a reader, an observer of
PostgreSQL, a writer whose COMMIT was answered) notes it in memory that all share. Beside ours each reader asks a cache that
deletes after COMMIT, on the same rows: a checker that finds nothing wrong there has no teeth. PostgreSQL has a replica that
applies everything late; ``behind`` counts the rows that it showed older than the cache did through the same session.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import mmap
import os
import random
import select
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "integration")]

import psycopg
import redis
from redislab import RedisServer, Relay
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Mapped, mapped_column
from standby import make_standby

from shardkit import Cached, ListKey, Settings, ShardedBase, ShardKey, ShardKit, TenantScoped, run_local
from shardkit.catalog.changes import set_replicas
from shardkit.core import cacheproto as proto
from shardkit.errors import CacheUnavailableError, ShardKitError
from shardkit.local.databases import fresh_databases
from shardkit.schema.blueprint import from_metadata
from shardkit.schema.bootstrap import initialize

KEYS, THREADS, TENANT = 8, 4, "acme"
READS, STALE, NAIVE_READS, NAIVE_STALE, WRITES, HITS, DEATHS, BEHIND = range(KEYS, KEYS + 8)
WORK = (READS, WRITES)
SLOT = KEYS + 8


class Base(ShardedBase):
    __abstract__ = True
    metadata = type(ShardedBase.metadata)()


class Register(TenantScoped, Base):
    __tablename__ = "registers"
    id: Mapped[int] = mapped_column(ShardKey, primary_key=True)
    owner: Mapped[int]
    slug: Mapped[str] = mapped_column(unique=True)
    version: Mapped[int]
    __cached__ = Cached(unique=["slug"], lists=[ListKey("owner", limit=50)])


class Board:
    """Counters in a file that every process maps; each thread writes to a slot of its own, so that nothing is locked."""

    def __init__(self, path: str, slots: int) -> None:
        size = slots * SLOT * 8
        with Path(path).open("r+b") as file:
            file.truncate(size)
            self._map = mmap.mmap(file.fileno(), size)
        self.slots = slots

    def get(self, slot: int, place: int) -> int:
        return struct.unpack_from("<q", self._map, (slot * SLOT + place) * 8)[0]

    def put(self, slot: int, place: int, value: int) -> None:
        struct.pack_into("<q", self._map, (slot * SLOT + place) * 8, value)

    def add(self, slot: int, place: int, count: int = 1) -> None:
        self.put(slot, place, self.get(slot, place) + count)

    def known(self, key: int) -> int:
        return max(self.get(slot, key) for slot in range(self.slots))

    def learn(self, slot: int, key: int, version: int) -> None:
        if version > self.get(slot, key):
            self.put(slot, key, version)

    def total(self, place: int) -> int:
        return sum(self.get(slot, place) for slot in range(self.slots))


def work(plan: dict) -> None:
    """A process: its threads read or write until it is killed."""
    board = Board(plan["board"], plan["slots"])
    settings = Settings(
        catalog_url=plan["catalog_url"],
        redis_url=plan["redis_url"],
        cache_on_down="strict",
        cache_timeout_s=0.2,  # a busy machine is not yet a fault
        pool_size=THREADS + 4,
    )
    kit = ShardKit(settings=settings)
    if plan["broken"]:  # planted: fills do not ask whether the marked transactions are over, and half the markers are left out
        proto.settled = lambda *_: True
        place = kit.cache.writer.place
        kit.cache.writer.place = lambda *given: random.random() < 0.5 or place(*given)
    for number in range(THREADS):
        slot = plan["slot"] + number
        draw = random.Random(f"{plan['seed']}.{slot}.{os.getpid()}")
        todo = (Writer if plan["role"] == "writer" else Reader)(kit, board, slot, draw, plan["ids"], plan["redis_url"])
        threading.Thread(target=todo.run, daemon=True).start()
    threading.Event().wait()


class Nursery:
    """Forks workers from one process that has imported everything: a death costs milliseconds, also where a machine is slow."""

    def __init__(self) -> None:
        argv = [sys.executable, __file__, "--nursery"]
        self.parent = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def spawn(self, plan: dict) -> Worker:
        self.parent.stdin.write(json.dumps(plan) + "\n")
        self.parent.stdin.flush()
        return Worker(int(self.parent.stdout.readline()))

    def close(self) -> None:
        self.parent.stdin.close()
        self.parent.stdout.close()
        self.parent.wait(20)


def nursery() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries them
    for line in sys.stdin:
        child = os.fork()
        if not child:
            work(json.loads(line))
        sys.stdout.write(f"{child}\n")
        sys.stdout.flush()


class Worker:
    """A process that is nobody's child here, held by a descriptor: its number may be another's by now."""

    def __init__(self, pid: int) -> None:
        self.fd = os.pidfd_open(pid)

    def dead(self, timeout_s: float = 0) -> bool:
        return bool(select.select([self.fd], [], [], timeout_s)[0])

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.fd, signal.SIGKILL)

    def close(self) -> None:
        self.kill()
        self.dead(20)
        os.close(self.fd)


class Naive:
    """Delete after COMMIT, as everybody does it."""

    def __init__(self, url: str) -> None:
        self.redis = redis.Redis.from_url(url, socket_timeout=0.05, socket_connect_timeout=0.05)

    def read(self, kit: ShardKit, key: int) -> int | None:
        with contextlib.suppress(redis.RedisError):
            found = self.redis.get(f"naive:{key}")
            if found is not None:
                return int(found)
        with kit.read(TENANT, replica=False) as session:
            row = session.get(Register, key)
        with contextlib.suppress(redis.RedisError):
            self.redis.set(f"naive:{key}", row.version, ex=3600)
        return row.version

    def delete(self, key: int) -> None:
        with contextlib.suppress(redis.RedisError):
            self.redis.delete(f"naive:{key}")


class Reader:
    def __init__(self, kit, board, slot, draw, ids, url) -> None:
        self.kit, self.board, self.slot, self.draw, self.ids, self.naive = kit, board, slot, draw, ids, Naive(url)
        self.hits = 0
        slow, filler = threading.Event(), kit.cache._filler
        if not hasattr(filler, "honest_fill"):
            filler.honest_fill = fill = filler.fill

            def late(*given):
                if draw.random() < 0.005:
                    slow.wait(draw.choice((0.02, 0.3, 3.5)))  # the last is longer than a lease
                return fill(*given)

            filler.fill = late

    def run(self) -> None:
        while True:
            number = min(self.draw.randrange(KEYS), self.draw.randrange(KEYS))  # some are hot
            if self.draw.random() < 0.8:
                self.all_at_once()
            else:
                self.check(number, self.ours, READS, STALE)
            hits, self.hits = self.hits, self.kit.cache.counts.hits // THREADS
            self.board.add(self.slot, HITS, self.hits - hits)
            if self.draw.random() < 0.5:
                self.check(number, lambda n: self.naive.read(self.kit, self.ids[n]), NAIVE_READS, NAIVE_STALE)

    def all_at_once(self) -> None:
        owed = [self.board.known(number) for number in range(KEYS)]
        try:
            rows = self.kit.cache.get_rows(Register, self.ids, tenant=TENANT)
        except (ShardKitError, DBAPIError):
            return
        for number, key in enumerate(self.ids):
            self.note(number, rows[key].version, owed[number], READS, STALE)

    def check(self, number, read, reads, stale) -> None:
        owed = self.board.known(number)
        try:
            version = read(number)
        except (ShardKitError, DBAPIError):
            return
        self.note(number, version, owed, reads, stale)

    def note(self, number, version, owed, reads, stale) -> None:
        self.board.add(self.slot, reads)
        if version < owed:
            self.board.add(self.slot, stale)
            if stale == STALE:
                sys.stderr.write(f"STALE: key {number}: {version} < {owed}\n")
        self.board.learn(self.slot, number, version)

    def ours(self, number: int) -> int:
        cache, key = self.kit.cache, self.ids[number]
        way = self.draw.randrange(10)
        if way == 1:
            return cache.get_row(Register, f"r{number}", by="slug", tenant=TENANT).version
        if way == 2:
            return next(r.version for r in cache.list(Register, 1, by="owner", tenant=TENANT) if r.id == key)
        if way == 3:
            with self.kit.read(TENANT) as session:
                return cache.get(Register, key, session=session).version
        if way == 4:  # through a replica's session, of rows that it shows older than they are
            with self.kit.read(TENANT, max_lag_s=3600.0) as session:
                found = cache.get(Register, key, session=session)
                session.expunge(found)
                behind = session.get(Register, key).version
                self.board.add(self.slot, BEHIND, behind < found.version)
                return found.version
        return cache.get_row(Register, key, tenant=TENANT).version


class Writer:
    def __init__(self, kit, board, slot, draw, ids, url) -> None:
        self.kit, self.board, self.slot, self.draw, self.ids, self.naive = kit, board, slot, draw, ids, Naive(url)
        self.pause = threading.Event()
        if not hasattr(kit.cache.writer, "honest_place"):
            kit.cache.writer.honest_place = place = kit.cache.writer.place

            def hurt(driver, names):
                self.die(0.004)
                place(driver, names)
                self.die(0.004)
                if draw.random() < 0.01:
                    self.pause.wait(draw.choice((0.01, 0.1, 0.5)))

            kit.cache.writer.place = hurt

    def die(self, chance: float) -> None:
        if self.draw.random() < chance:
            self.board.add(self.slot, DEATHS)
            os.kill(os.getpid(), signal.SIGKILL)

    def run(self) -> None:
        while True:
            number = min(self.draw.randrange(KEYS), self.draw.randrange(KEYS))  # some are hot
            try:
                with self.kit.begin(TENANT) as session:
                    row = session.get(Register, self.ids[number], with_for_update=True)
                    self.change(session, row)
                    version = row.version
                    if self.draw.random() < 0.05:
                        raise ZeroDivisionError  # rolled back
            except (ZeroDivisionError, CacheUnavailableError, ShardKitError, DBAPIError):
                continue
            self.board.add(self.slot, WRITES)
            self.die(0.004)
            self.naive.delete(self.ids[number])
            self.board.learn(self.slot, number, version)
            self.pause.wait(self.draw.expovariate(150))

    def change(self, session, row) -> None:
        if self.draw.random() < 0.3:
            with contextlib.suppress(ZeroDivisionError), session.begin_nested():
                row.version += 5
                session.flush()
                raise ZeroDivisionError
            session.refresh(row)
            with session.begin_nested():
                row.version += 1
        else:
            row.version += 1


def history(
    *,
    seconds: float,
    reads: int,
    seed: int,
    spacing: int = 100,
    broken: bool = False,
    enough=lambda _: True,
    talk=lambda _: None,
) -> dict[str, int]:
    """Run until *seconds* have passed, *reads* were checked and the totals are *enough* (or far too much time has passed), with
    *spacing* reads and writes between faults; the totals.
    """
    chance, processes = random.Random(seed), {}
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(run_local(servers=1, redis=False, trust=True, fast=True))
        databases = stack.enter_context(fresh_databases(cluster.servers, 1))
        servers = [stack.enter_context(RedisServer()), stack.enter_context(RedisServer())]
        servers[1].ask("REPLICAOF", "127.0.0.1", servers[0].port)
        relay = Relay(servers[0].port)
        stack.callback(relay.close)
        board_file = stack.enter_context(tempfile.NamedTemporaryFile())
        settings = Settings(catalog_url=databases.catalog_url)
        initialize(settings, servers=databases.servers, shard_count=1, blueprint=from_metadata(Base.metadata))
        standby = make_standby(cluster, of="pg1", name="pg1b")
        standby.apply_after("200ms")
        with psycopg.connect(databases.catalog_url) as catalog:
            set_replicas(catalog, "pg1", [standby.url_of(make_url(databases.servers["pg1"]).database)])
        slots = 6 * THREADS + 1
        board = Board(board_file.name, slots)
        kit = stack.enter_context(ShardKit(settings=settings))
        with kit.begin(TENANT) as session:
            rows = [Register(owner=1, slug=f"r{n}", version=1) for n in range(KEYS)]
            session.add_all(rows)
            session.flush()
            ids = [row.id for row in rows]
        plan = {
            "board": board_file.name,
            "slots": slots,
            "catalog_url": databases.catalog_url,
            "redis_url": relay.url,
            "ids": ids,
            "seed": seed,
            "broken": broken,
        }

        def done(number: int) -> int:
            return sum(board.get(slot, place) for slot in range(number * THREADS, (number + 1) * THREADS) for place in WORK)

        born: dict[int, int] = {}

        def spawn(number: int) -> None:
            born[number] = done(number)
            role = "writer" if number < 2 else "reader"
            if number in processes:
                processes[number].close()
            processes[number] = workers.spawn({**plan, "role": role, "slot": number * THREADS})

        def end() -> None:
            while processes:
                processes.popitem()[1].close()

        workers = stack.enter_context(contextlib.closing(Nursery()))
        stack.callback(end)
        for number in range(4):
            spawn(number)
        counts = {"flushes": 0, "freezes": 0, "promotions": 0, "killed": 0}
        started = last = said = time.monotonic()
        worked = 0
        pause = threading.Event()
        names = {"reads": READS, "stale": STALE, "naive_reads": NAIVE_READS, "naive_stale": NAIVE_STALE}
        names |= {"writes": WRITES, "deaths": DEATHS, "hits": HITS, "behind": BEHIND}

        def totals() -> dict[str, int]:
            return {name: board.total(place) for name, place in names.items()} | counts

        def over() -> bool:
            passed_s = time.monotonic() - started
            return passed_s >= seconds and board.total(READS) >= reads and (enough(totals()) or passed_s > seconds + 180)

        while not over():
            if broken and board.total(STALE):
                break
            with kit.read(TENANT) as session:  # the observer: who it was that died is of no matter to it
                for number, key in enumerate(ids):
                    board.learn(slots - 1, number, session.get(Register, key).version)
            for number, process in list(processes.items()):
                if process.dead():
                    spawn(number)
            if time.monotonic() - last > 0.4 and sum(map(done, processes)) - worked >= spacing:
                busy = [process for number, process in processes.items() if done(number) - born[number] > 20]
                hurt(chance, servers, relay, busy, counts)
                last, worked = time.monotonic(), sum(map(done, processes))
            if time.monotonic() - said > 10:
                said = time.monotonic()
                talk(f"{board.total(READS)} reads, {board.total(STALE)} stale; control {board.total(NAIVE_STALE)}")
            pause.wait(0.01)
        end()
        return totals()


def hurt(chance, servers, relay, busy, counts) -> None:
    """One fault, drawn by lot."""
    master = next(s for s in servers if s.port == relay.target)
    other = next(s for s in servers if s.port != relay.target)
    match chance.choice(("flush", "freeze", "promote", "kill", "kill", "none")):
        case "flush":
            counts["flushes"] += 1
            master.ask("FLUSHALL")
        case "freeze":
            counts["freezes"] += 1
            master.freeze()
            threading.Event().wait(chance.choice((0.03, 0.12, 0.5)))
            master.thaw()
        case "promote":
            counts["promotions"] += 1
            master.kill()  # first: two masters that both take markers are what no protocol over Redis can survive
            other.ask("REPLICAOF", "NO", "ONE")
            relay.point(other.port)
            master.start()
            master.ask("REPLICAOF", "127.0.0.1", other.port)
        case "kill":
            counts["killed"] += 1
            for process in chance.sample(busy, min(1, len(busy))):
                process.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nursery", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--reads", type=int, default=0)
    parser.add_argument("--spacing", type=int, default=1000, help="reads and writes between two faults")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--broken", action="store_true", help="with a planted bug, to see that it is found")
    given = parser.parse_args()
    if given.nursery:
        nursery()
    else:
        found = history(
            seconds=given.seconds,
            reads=given.reads,
            seed=given.seed,
            spacing=given.spacing,
            broken=given.broken,
            talk=lambda t: print(t, file=sys.stderr),
        )
        print(json.dumps({"seed": given.seed, **found}))
        sys.exit(1 if found["stale"] else 0)


if __name__ == "__main__":
    main()
