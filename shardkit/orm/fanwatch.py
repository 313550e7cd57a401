"""Who may watch fan-outs: each as a whole, and in it each message to a server. Nobody does, unless a tracer is put in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

from shardkit.core.shardmap import Route

Message = Callable[[str, int | None, int], AbstractContextManager[None]]
"""Around a message to *server* with so many *statements*, over so many *shards* (None: its cursors know)."""

Watch = Callable[[Sequence[Route]], AbstractContextManager[Message]]
"""Around a fan-out that asks the shards of these routes; gives what is to be around each of its messages."""


def unseen(_server: str, _shards: int | None, _statements: int) -> AbstractContextManager[None]:
    """Nobody watches this message."""
    return nullcontext()


@contextmanager
def unwatched(_routes: Sequence[Route]) -> Iterator[Message]:
    """Nobody watches this fan-out."""
    yield unseen
