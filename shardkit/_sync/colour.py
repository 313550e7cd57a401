"""The few things that are not the same in both colours."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from queue import Empty, SimpleQueue
from typing import Any, TypeVar, TypeVarTuple

from sqlalchemy.engine import Engine

from shardkit.db.scatter import connect_scatter

__all__ = ["ASYNC", "Gate", "close", "connect_scatter", "driver_of", "gather", "in_greenlet", "in_thread", "pause"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
ASYNC = False


def close(engine: Engine) -> None:
    """Close the idle connections of *engine*."""
    engine.dispose()


def gather(calls: Sequence[Callable[[], T]], *, timeout_s: float, cut: Callable[[], None]) -> list[T]:
    """What *calls*, run at the same time, give. After *timeout_s* *cut* is called, which makes those still waiting end."""
    with ThreadPoolExecutor(len(calls), thread_name_prefix="shardkit-fanout") as pool:
        futures = [pool.submit(call) for call in calls]
        try:
            _, late = wait(futures, timeout=max(timeout_s, 0))
            if late:
                cut()
            return [future.result() for future in futures]
        except BaseException:
            cut()
            raise


def in_greenlet(call: Callable[[], T]) -> T:
    """Run code of SQLAlchemy that may wait for a server."""
    return call()


class Gate:
    """Lets so many in at once."""

    def __init__(self, places: int) -> None:
        self._places = threading.Semaphore(places)

    def enter(self, timeout_s: float) -> bool:
        """Whether there was a place within *timeout_s*; ``leave`` gives it back."""
        return self._places.acquire(timeout=timeout_s)

    def leave(self) -> None:
        """Make place."""
        self._places.release()


def in_thread(work: Callable[[*Ts], T], *args: *Ts) -> T:
    """What blocks may block here."""
    return work(*args)


def driver_of(session: Any) -> Any:
    """The psycopg connection that carries the transaction of *session*."""
    return session.connection().connection.driver_connection


def run(work: Any) -> Any:
    """It is done already."""
    return work


def pause(seconds: float) -> None:
    """Do nothing for a while."""
    threading.Event().wait(seconds)


def background(work: Callable[[], Any]) -> None:
    """Start *work* beside what runs."""
    threading.Thread(target=work, name="shardkit-cache", daemon=True).start()


class Slots:
    """So many at a time."""

    def __init__(self, limit: int) -> None:
        self._free: SimpleQueue[None] = SimpleQueue()  # a twentieth of the time of a semaphore, which is Python
        for _ in range(limit):
            self._free.put(None)

    def take(self, timeout_s: float) -> bool:
        """One of them, or False when none came free in time."""
        try:
            self._free.get(timeout=timeout_s)
        except Empty:
            return False
        return True

    def give(self) -> None:
        """Give it back."""
        self._free.put(None)


class Signal:
    """Set once; many wait for it."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        """Now."""
        self._event.set()

    def wait(self, timeout_s: float) -> bool:
        """Whether it was set in time."""
        return self._event.wait(timeout_s)


class Batch:
    """A thread has nobody to gather with: what is asked for is fetched."""

    def __init__(self, fetch: Callable[[Sequence[tuple[str, Sequence[str]]]], list[Any]]) -> None:
        self._fetch = fetch

    def get(self, tag: str, names: Sequence[str]) -> list[Any]:
        """Values of *names*."""
        return self._fetch(((tag, names),))
