"""The few things that are not the same in both colours."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

from sqlalchemy.engine import Engine

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
ASYNC = False


def close(engine: Engine) -> None:
    """Close the idle connections of *engine*."""
    engine.dispose()


def in_thread(work: Callable[[*Ts], T], *args: *Ts) -> T:
    """What blocks may block here."""
    return work(*args)
