"""The few things that are not the same in both colours."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar, TypeVarTuple

from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.util import await_only, greenlet_spawn

from shardkit.db.scatter import connect_scatter_async as connect_scatter

__all__ = ["ASYNC", "Gate", "close", "connect_scatter", "driver_of", "gather", "in_greenlet", "in_thread", "pause"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
ASYNC = True

_background: set[asyncio.Task[Any]] = set()


async def close(engine: Engine) -> None:
    """Close the idle connections of *engine*."""
    await AsyncEngine(engine).dispose()


async def gather(calls: Sequence[Callable[[], Awaitable[T]]], *, timeout_s: float, cut: Callable[[], None]) -> list[T]:
    """What *calls*, run at the same time, give. After *timeout_s* *cut* is called, which makes those still waiting end."""
    tasks = [asyncio.ensure_future(call()) for call in calls]
    try:
        _, late = await asyncio.wait(tasks, timeout=max(timeout_s, 0))
        if late:
            cut()
        return await asyncio.gather(*tasks)
    except BaseException:
        cut()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


async def in_greenlet(call: Callable[[], T]) -> T:
    """Run sync-looking code of SQLAlchemy that may wait for a server."""
    return await greenlet_spawn(call)


class Gate:
    """Lets so many in at once."""

    def __init__(self, places: int) -> None:
        self._places = asyncio.Semaphore(places)

    async def enter(self, timeout_s: float) -> bool:
        """Whether there was a place within *timeout_s*; ``leave`` gives it back."""
        try:
            await asyncio.wait_for(self._places.acquire(), timeout_s)
        except TimeoutError:
            return False
        return True

    def leave(self) -> None:
        """Make place."""
        self._places.release()


async def in_thread(work: Callable[[*Ts], T], *args: *Ts) -> T:
    """What blocks, where it does not hold up the loop."""
    return await asyncio.to_thread(work, *args)


async def driver_of(session: Any) -> Any:
    """The psycopg connection that carries the transaction of *session*."""
    connection = await session.connection()
    return (await connection.get_raw_connection()).driver_connection


def run(work: Any) -> Any:
    """Wait for *work* below SQLAlchemy's sync-looking calls."""
    return await_only(work)


async def pause(seconds: float) -> None:
    """Do nothing for a while."""
    await asyncio.sleep(seconds)


def background(work: Callable[[], Any]) -> None:
    """Start *work* beside what runs."""
    task = asyncio.get_running_loop().create_task(work())
    _background.add(task)
    task.add_done_callback(_background.discard)


class Slots:
    """So many at a time."""

    def __init__(self, limit: int) -> None:
        self._free = asyncio.Semaphore(limit)

    async def take(self, timeout_s: float) -> bool:
        """One of them, or False when none came free in time."""
        if not self._free.locked():
            return await self._free.acquire()
        try:
            return await asyncio.wait_for(self._free.acquire(), timeout_s)
        except TimeoutError:
            return False

    def give(self) -> None:
        """Give it back."""
        self._free.release()


class Signal:
    """Set once; many wait for it."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        """Now."""
        self._event.set()

    async def wait(self, timeout_s: float) -> bool:
        """Whether it was set in time."""
        try:
            await asyncio.wait_for(self._event.wait(), timeout_s)
        except TimeoutError:
            return False
        return True


class Batch:
    """Gathers what is asked for in one tick of the loop into one call."""

    def __init__(self, fetch: Callable[[Sequence[tuple[str, Sequence[str]]]], Awaitable[list[Any]]]) -> None:
        self._fetch = fetch
        self._wanted: list[tuple[str, Sequence[str]]] = []
        self._waiting: list[tuple[asyncio.Future[list[Any]], int]] = []

    async def get(self, tag: str, names: Sequence[str]) -> list[Any]:
        """Values of *names*."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Any]] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._go, loop)
        self._waiting.append((future, len(names)))
        self._wanted.append((tag, names))
        return await future

    def _go(self, loop: asyncio.AbstractEventLoop) -> None:
        wanted, waiting = self._wanted, self._waiting
        self._wanted, self._waiting = [], []
        task = loop.create_task(self._send(wanted, waiting))
        _background.add(task)
        task.add_done_callback(_background.discard)

    async def _send(
        self, wanted: list[tuple[str, Sequence[str]]], waiting: list[tuple[asyncio.Future[list[Any]], int]]
    ) -> None:
        try:
            found = await self._fetch(wanted)
        except BaseException as exc:
            for future, _ in waiting:
                if not future.done():
                    future.set_exception(exc if isinstance(exc, Exception) else asyncio.CancelledError())
                    future.exception()  # seen, also where the one who asked has gone
            if not isinstance(exc, Exception):
                raise
            return
        at = 0
        for future, count in waiting:
            if not future.done():
                future.set_result(found[at : at + count])
            at += count
