"""The few things that are not the same in both colours."""

from __future__ import annotations

from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import AsyncEngine

ASYNC = True


async def close(engine: Engine) -> None:
    """Close the idle connections of *engine*."""
    await AsyncEngine(engine).dispose()
