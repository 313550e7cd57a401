"""Clients in processes and threads of their own: each does one operation after the other, as fast as it is answered."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from time import monotonic, sleep

from benchmarks.workloads import LOADS
from shardkit import ShardKit

PROCESSES = 2
HEAD_START_S = 0.1


@dataclass(frozen=True, slots=True)
class Order:
    """What all clients do next: *load* against the cluster of *catalog_url*, each for *lasting_s*."""

    catalog_url: str
    load: str
    clients: int
    pool_size: int
    lasting_s: float
    seed: int
    servers: tuple[tuple[str, str], ...] = ()
    """Name and URL of servers to be reached in another way than the catalog says."""


@dataclass(frozen=True, slots=True)
class Tally:
    """What came of an order: the seconds of each operation that ended in time, the time they had, and when it began."""

    taken_s: list[float]
    lasting_s: float
    began: float

    @property
    def per_s(self) -> float:
        return len(self.taken_s) / self.lasting_s


class Crowd:
    """Client processes; every order is carried out by all of them at the same time."""

    def __init__(self, pipes: list[Connection]) -> None:
        self._pipes = pipes

    def run(self, order: Order) -> Tally:
        """Carry *order* out. Raises RuntimeError where an operation failed: figures with errors in them are none."""
        for number, pipe in enumerate(self._pipes):
            pipe.send((order, range(number, order.clients, len(self._pipes))))
        for pipe in self._pipes:
            pipe.recv()  # ready
        begin_at = monotonic() + HEAD_START_S
        for pipe in self._pipes:
            pipe.send(begin_at)
        answers = [pipe.recv() for pipe in self._pipes]
        if errors := [answer for answer in answers if isinstance(answer, str)]:
            raise RuntimeError(f"{order.load}: a client failed: {errors[0]}")
        return Tally([second for answer in answers for second in answer], order.lasting_s, begin_at)


@contextmanager
def crowd() -> Iterator[Crowd]:
    """Client processes that end with the block."""
    spawn = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for _ in range(PROCESSES):
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=_serve, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    try:
        yield Crowd(pipes)
    finally:
        for pipe, process in zip(pipes, processes, strict=True):
            pipe.close()
            process.join(timeout=10)


def _serve(pipe: Connection) -> None:
    """A client process: carries orders out until the pipe is closed."""
    kits: dict[tuple[object, ...], ShardKit] = {}
    with ExitStack() as stack, pipe:
        while True:
            try:
                order, numbers = pipe.recv()
            except EOFError:
                return
            key = order.catalog_url, order.pool_size, order.servers
            if key not in kits:
                kits[key] = stack.enter_context(_kit(order))
            pipe.send("ready")
            begin_at = pipe.recv()
            try:
                pipe.send(_carry_out(kits[key], order, numbers, begin_at))
            except Exception as exc:
                pipe.send(repr(exc))


def _kit(order: Order) -> ShardKit:
    budget, size = order.pool_size + 10, order.pool_size
    return ShardKit(
        order.catalog_url, servers=dict(order.servers), pool_size=size, connection_budget=budget, pool_timeout_s=60.0
    )


def _carry_out(kit: ShardKit, order: Order, numbers: range, begin_at: float) -> list[float]:
    sleep(max(0.0, begin_at - monotonic()))
    with ThreadPoolExecutor(len(numbers) or 1) as pool:
        ends = begin_at + order.lasting_s
        running = [pool.submit(_client, kit, order, order.seed * 1000 + number, ends) for number in numbers]
        return [second for future in running for second in future.result()]


def _client(kit: ShardKit, order: Order, seed: int, ends: float) -> list[float]:
    taken = []
    for operation in LOADS[order.load].client(kit, seed):
        began = monotonic()
        if began >= ends:
            break
        operation()
        done = monotonic()
        if done <= ends:
            taken.append(done - began)
    return taken
