"""Every wait on a server ends: at the deadline of the block one stands in, or after the longest a single call may take.

The waiting itself is psycopg's, which wakes up every tenth of a second; at the deadline the connection is dropped by
``shutdown(2)``, and that ends the call whatever the other side does. Nothing is cancelled: a cancel request could hit a COMMIT,
and a server that does not answer does not answer that either.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, Final

from psycopg.errors import _WaitTimeout

_at: ContextVar[float | None] = ContextVar("shardkit_deadline", default=None)
SHORTEST_S: Final = 0.001


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Every call inside the block ends by *seconds* from now; an outer block's earlier deadline still counts."""
    now_at, outer = time.monotonic() + seconds, _at.get()
    token = _at.set(now_at if outer is None else min(outer, now_at))
    try:
        yield
    finally:
        _at.reset(token)


def left(limit_s: float) -> float:
    """Seconds a call that begins now may take: *limit_s*, or less where a block ends sooner."""
    at = _at.get()
    return limit_s if at is None else min(limit_s, max(at - time.monotonic(), SHORTEST_S))


def bounded(waiting: Generator[Any, Any, Any], *, seconds: float) -> Generator[Any, Any, Any]:
    """The connecting generator *waiting*, ended after *seconds* (psycopg's own bound is never below two)."""
    at = time.monotonic() + seconds
    try:
        wanted = next(waiting)
        while True:
            ready = yield wanted
            if time.monotonic() >= at:
                waiting.close()
                raise _WaitTimeout("connection timeout expired")
            wanted = waiting.send(ready)
    except StopIteration as done:
        return done.value


def drop(wire: Any) -> None:
    """End a connection now: first the socket, so that saying goodbye cannot wait for anybody."""
    with suppress(OSError):
        handle = socket.socket(fileno=os.dup(wire.socket))
        with handle, suppress(OSError):
            handle.shutdown(socket.SHUT_RDWR)
    wire.finish()
