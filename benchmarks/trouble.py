"""What a server in trouble costs: how soon writes are back after a promotion, and what other servers' tenants notice."""

from __future__ import annotations

import os
import random
import signal
import statistics
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from time import perf_counter, sleep
from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Mapped, mapped_column

from benchmarks.harness import Bench
from benchmarks.standby import Standby, make_standby
from shardkit import Settings, ShardedBase, ShardKey, ShardKit, TenantScoped, run_local
from shardkit.errors import CommitUnknownError, ShardKitError
from shardkit.local import LocalCluster
from shardkit.local.databases import fresh_databases
from shardkit.local.keeper import children
from shardkit.schema.blueprint import from_metadata
from shardkit.schema.bootstrap import initialize

QUESTION: Final = "A server fails: how soon are writes back after a promotion, and what do other servers' tenants notice?"
SHARDS: Final = 16
KILLED_FIRST_S: Final = 1.0  # from the primary's death to the promotion: a cluster manager needs longer
STUCK_THREADS: Final = 4  # that call the stopped server all the time, each call up to its deadline
STUCK_DEADLINE_S: Final = 1.0
GIVE_UP_S: Final = 60.0


class Troubled(ShardedBase):
    """Its own metadata, apart from other models of the process."""

    __abstract__ = True
    metadata = type(ShardedBase.metadata)()


class Note(TenantScoped, Troubled):
    """What is written and read."""

    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(ShardKey, primary_key=True)
    text: Mapped[str]


def run(bench: Bench) -> None:
    """Both figures; each promotion on a cluster of its own, since an old primary is no standby."""
    bench.params |= {
        "stuck_threads": STUCK_THREADS,
        "stuck_deadline_s": STUCK_DEADLINE_S,
        "killed_before_promotion_s": KILLED_FIRST_S,
    }
    _others(bench, rounds=bench.pick(9, 5))
    _writes_back(bench, rounds=bench.pick(7, 2))


def _others(bench: Bench, *, rounds: int) -> None:
    """p99 of reads and writes of a healthy server's tenants: while another one is stopped / with the same load, before."""
    with run_local(servers=2, redis=False, trust=True) as cluster, fresh_databases(cluster.servers, 2) as databases:
        settings = Settings(catalog_url=databases.catalog_url, pool_size=STUCK_THREADS + 1, connect_timeout_s=2.0)
        initialize(settings, servers=databases.servers, shard_count=SHARDS, blueprint=from_metadata(Note.metadata))
        ratios, medians = [], []
        before_ms, meanwhile_ms = [], []
        with ShardKit(settings=settings) as kit:
            # The catalog is on pg1, so pg2 is the one that is stopped, and pg1 the healthy one.
            here, there = _tenants(kit, "pg1"), _tenants(kit, "pg2")
            task = bench.progress.add_task("another server is stopped", total=rounds)
            count = bench.pick(1500, 600)
            _calls(kit, here, count=count)
            for number in range(rounds):
                taken: dict[str, list[float]] = {}
                for stopped in (False, True) if number % 2 else (True, False):
                    with ExitStack() as stack:
                        if stopped:
                            stack.enter_context(_stopped(cluster, "pg2"))
                            stack.enter_context(_callers(kit, there))
                        taken["stopped" if stopped else "well"] = _calls(kit, here, count=count)
                    _calls(kit, there[:1], count=1)
                ratios.append(_p99(taken["stopped"]) / _p99(taken["well"]))
                medians.append(statistics.median(taken["stopped"]) / statistics.median(taken["well"]))
                before_ms.append(_p99(taken["well"]) * 1000)
                meanwhile_ms.append(_p99(taken["stopped"]) * 1000)
                bench.progress.advance(task)
    bench.record("others_p99_ratio", ratios, unit="ratio", goal=1.2)
    bench.record("others_median_ratio", medians, unit="ratio")
    bench.record("others_p99_before_ms", before_ms, unit="ms")
    bench.record("others_p99_meanwhile_ms", meanwhile_ms, unit="ms")


def _calls(kit: ShardKit, tenants: Sequence[str], *, count: int) -> list[float]:
    """Seconds of *count* units of work, one in five of them a write."""
    draw, taken = random.Random(count), []
    for number in range(count):
        tenant = draw.choice(tenants)
        start = perf_counter()
        if number % 5:
            with kit.read(tenant) as session:
                session.scalars(select(Note).limit(1)).all()
        else:
            with kit.begin(tenant) as session:
                session.add(Note(text="new"))
        taken.append(perf_counter() - start)
    return taken


@contextmanager
def _callers(kit: ShardKit, tenants: Sequence[str]) -> Iterator[None]:
    """Threads of the same program that go on calling the server which does not answer."""
    over = threading.Event()

    def call() -> None:
        while not over.is_set():
            with suppress(ShardKitError), kit.deadline(STUCK_DEADLINE_S), kit.begin(random.choice(tenants)) as session:
                session.add(Note(text="stuck"))

    threads = [threading.Thread(target=call) for _ in range(STUCK_THREADS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


@contextmanager
def _stopped(cluster: LocalCluster, name: str) -> Iterator[None]:
    """SIGSTOP for the server and all its backends."""
    root = cluster.pid(name)
    assert root is not None
    pids = [root, *children(root)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def _writes_back(bench: Bench, *, rounds: int) -> None:
    """From the moment the standby is told to promote until a write of ``kit.run`` is acknowledged on it."""
    back, gaps = [], []
    task = bench.progress.add_task("promotions", total=rounds)
    for _ in range(rounds):
        with run_local(servers=2, redis=False, trust=True) as cluster, fresh_databases(cluster.servers, 2) as databases:
            settings = Settings(catalog_url=databases.catalog_url)
            initialize(settings, servers=databases.servers, shard_count=SHARDS, blueprint=from_metadata(Note.metadata))
            standby = make_standby(cluster, of="pg2", name="pg2b")
            url = make_url(databases.servers["pg2"])
            both = f"postgresql://{url.username}@{url.host}:{url.port},{url.host}:{standby.port}/{url.database}"
            settings = Settings(catalog_url=databases.catalog_url, servers={**databases.servers, "pg2": both})
            with ShardKit(settings=settings) as kit:
                promoted_at, gap, first_s = _fail_over(cluster, kit, standby, databases.servers["pg2"])
                back.append(first_s - promoted_at)
                gaps.append(gap)
            cluster.start_server("pg2")  # so that its databases can be dropped
        bench.progress.advance(task)
    bench.record("writes_back_s", back, unit="s", goal=5)
    bench.record("writes_gap_s", gaps, unit="s")


def _fail_over(cluster: LocalCluster, kit: ShardKit, standby: Standby, primary_url: str) -> tuple[float, float, float]:
    """Moment of the promotion's command, seconds between the last write before and the first after, moment of that one."""
    tenant = _tenants(kit, "pg2")[0]
    acknowledged: list[float] = []
    over = threading.Event()

    def write() -> None:
        while not over.is_set():
            with suppress(ShardKitError, CommitUnknownError):
                kit.run(tenant, lambda session: session.add(Note(text="on and on")))
                acknowledged.append(perf_counter())

    writer = threading.Thread(target=write)
    writer.start()
    try:
        _until(lambda: len(acknowledged) > 50 and standby.caught_up_with(primary_url))
        cluster.kill_server("pg2")
        killed_at = perf_counter()
        sleep(KILLED_FIRST_S)
        promoted_at = perf_counter()
        standby.promote()
        _until(lambda: acknowledged[-1] > promoted_at)
    finally:
        over.set()
        writer.join()
    first = next(moment for moment in acknowledged if moment > promoted_at)
    last = max(moment for moment in acknowledged if moment <= killed_at)
    return promoted_at, first - last, first


def _until(condition: Callable[[], Any]) -> None:
    give_up = perf_counter() + GIVE_UP_S
    while not condition():
        if perf_counter() > give_up:
            raise TimeoutError(f"still not so after {GIVE_UP_S:g} s")
        sleep(0.01)


def _tenants(kit: ShardKit, server: str) -> list[str]:
    return [name for name in (f"tenant-{n}" for n in range(400)) if kit.locate(name).server == server]


def _p99(taken: Sequence[float]) -> float:
    return statistics.quantiles(taken, n=100)[98]
