"""The few things that are not the same in both colours."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar, TypeVarTuple

from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.util import greenlet_spawn

from shardkit.db.scatter import connect_scatter_async as connect_scatter

__all__ = ["ASYNC", "Gate", "close", "connect_scatter", "driver_of", "gather", "in_greenlet", "in_thread", "pause"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
ASYNC = True


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


async def pause(seconds: float) -> None:
    """Do nothing for a while."""
    await asyncio.sleep(seconds)
