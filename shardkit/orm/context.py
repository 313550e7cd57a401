"""Whose work this is: an explicit tenant, else the one of the block one stands in, else an error."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from shardkit.core.hashing import TenantKey
from shardkit.core.token import Token
from shardkit.errors import NoTenantError, TenantLockedError


class Trail:
    """What one block has written, or is said (by a token) to have written elsewhere: reads in it must see that much."""

    __slots__ = ("_lock", "after", "written_s")

    def __init__(self, after: Token | None = None) -> None:
        self.after = after
        self.written_s: float | None = None
        self._lock = threading.Lock()

    def wrote(self) -> None:
        """A unit of work that may have written has ended just now."""
        with self._lock:
            self.written_s = time.monotonic()


@dataclass(frozen=True, slots=True)
class _Current:
    tenant: TenantKey
    locked: bool
    trail: Trail


class TenantContext:
    """The current tenant of one kit, in a ContextVar: it follows tasks, and is not inherited by new threads."""

    def __init__(self) -> None:
        self._current: ContextVar[_Current | None] = ContextVar("shardkit_tenant", default=None)

    @property
    def tenant(self) -> TenantKey | None:
        """Tenant of the block one stands in, if any."""
        current = self._current.get()
        return current.tenant if current else None

    @property
    def wrote(self) -> bool:
        """Whether a unit of work that may have written has ended in the block one stands in."""
        current = self._current.get()
        return current is not None and current.trail.written_s is not None

    def resolve(self, tenant: TenantKey | None) -> TenantKey:
        """*tenant*, else the block's. Raises NoTenantError, or TenantLockedError for another one than a locked block's."""
        current = self._current.get()
        if tenant is None:
            if current is None:
                raise NoTenantError
            return current.tenant
        if current is not None and current.locked and not _same(current.tenant, tenant):
            raise TenantLockedError(
                "this block is locked to one tenant and another was asked for; nothing was sent. "
                "Leave the block first, or use operator access if that is what you mean"
            )
        return tenant

    def trail_of(self, tenant: TenantKey) -> Trail | None:
        """The trail of the block one stands in, if it is *tenant*'s."""
        current = self._current.get()
        return current.trail if current is not None and _same(current.tenant, tenant) else None

    @contextmanager
    def enter(self, tenant: TenantKey, *, lock: bool, after: Token | None = None) -> Iterator[TenantKey]:
        """Make *tenant* the current one inside the block; *lock* refuses any other until its end.

        Reads in the block see what was written in it, and up to *after*. A block in another one of the same tenant shares it.
        """
        before = self._current.get()
        tenant = self.resolve(tenant)
        trail = None if after is not None else self.trail_of(tenant)
        token = self._current.set(_Current(tenant, lock or (before is not None and before.locked), trail or Trail(after)))
        try:
            yield tenant
        finally:
            self._current.reset(token)


def _same(one: TenantKey, other: TenantKey) -> bool:
    return type(one) is type(other) and one == other
