"""The few things that are not the same in both colours."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import AsyncEngine

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
ASYNC = True


async def close(engine: Engine) -> None:
    """Close the idle connections of *engine*."""
    await AsyncEngine(engine).dispose()


async def in_thread(work: Callable[[*Ts], T], *args: *Ts) -> T:
    """What blocks, where it does not hold up the loop."""
    return await asyncio.to_thread(work, *args)
