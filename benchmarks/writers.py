"""Writers in processes of their own, which go on whatever happens to their shard, and log what they saw."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text

from benchmarks.statistics import quantile
from shardkit import Settings, ShardKit

WRITERS = 4
PACE_S = 0.02  # four writers, 200 transactions a second
TENANT = "acme"


@dataclass(frozen=True, slots=True)
class Write:
    """One write as its client saw it."""

    writer: int
    n: int
    began: float
    seconds: float
    error: str | None

    def within(self, since: float, until: float) -> bool:
        """Whether any of it was in that time."""
        return since <= self.began + self.seconds and self.began <= until


Span = tuple[float, float]
"""When something began and ended, on the clock of the writes."""


def wait(seconds: float) -> Span:
    """That time, from now on."""
    began = time.perf_counter()
    time.sleep(seconds)
    return began, time.perf_counter()


def p99(writes: list[Write], span: Span) -> float:
    """Seconds within which 99 of 100 writes of that time were done."""
    found = [w.seconds for w in writes if span[0] <= w.began <= span[1]] or [w.seconds for w in writes[-50:]]
    return quantile(found, 0.99)


def worst(writes: list[Write], span: Span) -> float:
    """Milliseconds of the slowest write in that time."""
    return max((w.seconds * 1000 for w in writes if w.within(*span)), default=0.0)


@contextmanager
def counting(processes: int) -> Iterator[None]:
    """So many processes that do nothing but count, and take a core each if they get it."""
    spawn = multiprocessing.get_context("spawn")
    stop = spawn.Event()
    begun = [spawn.Process(target=_count, args=(stop,), daemon=True) for _ in range(processes)]
    for process in begun:
        process.start()
    try:
        yield
    finally:
        stop.set()
        for process in begun:
            process.join(timeout=10)


def _count(stop: Any) -> None:
    os.setsid()  # as every server process of PostgreSQL does: Linux shares out its time by session
    while not stop.is_set():
        for _ in range(100_000):
            pass


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
