"""A forked child drops what is its parent's: sockets, locks held by threads that are not there, the threads themselves."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any

_calls: list[weakref.WeakMethod[Callable[[], Any]]] = []


def in_forked_child(call: Callable[[], Any]) -> None:
    """Call *call*, a method, in every child forked from now on, for as long as its object lives."""
    _calls[:] = [known for known in _calls if known() is not None]
    _calls.append(weakref.WeakMethod(call))


def _after_fork() -> None:
    for known in _calls:
        if (call := known()) is not None:
            call()


os.register_at_fork(after_in_child=_after_fork)
