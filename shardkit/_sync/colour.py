"""The few things that are not the same in both colours."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
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


def pause(seconds: float) -> None:
    """Do nothing for a while."""
    time.sleep(seconds)
