"""One transaction over several tenants: an ordinary COMMIT where one of them wrote, else two phases with a recorded decision.

The decision is a row in the catalog. Before it is there, everything can be rolled back; from then on everything will be
committed, by this program or by a resolver. Nothing waits longer for a dead coordinator than its patience.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from types import TracebackType
from typing import Any, Self
from uuid import UUID, uuid4

from sqlalchemy import text

from shardkit._async import colour
from shardkit.catalog.decisions import Decisions
from shardkit.catalog.router import Router
from shardkit.core.hashing import TenantKey
from shardkit.core.names import gid
from shardkit.db.scatter import DriverError
from shardkit.db.two_phase import DISABLED, GONE, end, prepare
from shardkit.errors import (
    CommitUnknownError,
    ServerError,
    TenantMismatchError,
    TwoPhaseDisabledError,
    TwoPhaseError,
)
from shardkit.orm.cachescope import inner_of
from shardkit.orm.session import AsyncRoutedSession

log = logging.getLogger("shardkit.transactions")
_WROTE = text("SELECT pg_current_xact_id_if_assigned() IS NOT NULL")


class AsyncTransaction:
    """A block over several tenants: ``tx.session("a")`` is the session of each. It commits all or nothing at its end."""

    def __init__(
        self, router: Router, decisions: Decisions, sessions: dict[TenantKey, AsyncRoutedSession], *, patience_s: int
    ) -> None:
        self._router, self._decisions, self._patience_s = router, decisions, patience_s
        self._sessions = sessions
        self.id: UUID = uuid4()

    def session(self, tenant: TenantKey) -> AsyncRoutedSession:
        """The session of one of the transaction's tenants. Raises TenantMismatchError for any other."""
        try:
            return self._sessions[tenant]
        except KeyError:
            raise TenantMismatchError("this transaction was not begun for that tenant; nothing was sent") from None

    __getitem__ = session

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                await self._commit()
        finally:
            for session in self._sessions.values():
                with suppress(ServerError):  # a rollback on a connection that is gone; what became of it is said, or decided
                    await session.close()

    async def _commit(self) -> None:
        for session in self._sessions.values():
            await session.flush()
        begun = [session for session in self._sessions.values() if session.in_transaction() or inner_of(session).changes]
        wrote = begun if len(begun) == 1 else [session for session in begun if await session.scalar(_WROTE)]
        lost: list[AsyncRoutedSession] = []
        if len(wrote) > 1:
            lost = await self._two_phases(wrote)
        elif wrote:
            await wrote[0].commit()
        for session in begun:
            if session not in lost:
                await session.commit()

    async def _two_phases(self, wrote: list[AsyncRoutedSession]) -> list[AsyncRoutedSession]:
        """Prepare all, record the decision, commit all; gives those whose commit is left to a resolver."""
        began = time.monotonic()
        parts = [gid(self._router.cluster_id.hex, self.id.hex, part, self._patience_s) for part in range(len(wrote))]
        homes = [session.route.server for session in wrote]
        drivers = [await colour.driver_of(session) for session in wrote]
        for session in wrote:
            inner: Any = inner_of(session)
            await colour.in_greenlet(inner.mark_cached)  # before PREPARE, as before COMMIT
        done: list[int] = []
        for part, driver in enumerate(drivers):
            reached(f"prepare {part}")
            try:
                await driver.execute(prepare(parts[part]))
            except DriverError as exc:
                await self._undo(drivers, parts, done)
                raise self._not_prepared(exc, homes[part]) from exc
            done.append(part)
        reached("decide")
        left_s = self._patience_s - (time.monotonic() - began)
        try:
            decision = await colour.in_thread(self._decide, sorted(set(homes)), max(left_s, 0.0))
        except ServerError as exc:
            raise CommitUnknownError(
                f"the decision of transaction {self.id} could not be recorded: the catalog does not answer. It is committed "
                "everywhere if the record is there, else rolled back everywhere, by a resolver"
            ) from exc
        reached("decided")
        if decision == "abort":
            await self._undo(drivers, parts, done)
            raise TwoPhaseError(
                f"transaction {self.id} took longer than its {self._patience_s} s: it was rolled back everywhere"
            )
        lost = []
        for part, driver in enumerate(drivers):
            reached(f"commit {part}")
            try:
                await driver.execute(end(parts[part], commit=True))
            except DriverError as exc:
                if exc.sqlstate != GONE:  # else a resolver was faster
                    log.warning("transaction %s is committed; a resolver will carry it out on %s", self.id, homes[part])
                    lost.append(wrote[part])
        if lost:
            return lost
        reached("finish")
        try:
            await colour.in_thread(self._decisions.finish, self.id)
        except ServerError as exc:
            log.warning("transaction %s is committed everywhere; the catalog was not told: %s", self.id, exc)
        return lost

    def _decide(self, servers: list[str], within_s: float) -> str:
        return self._decisions.decide(self.id, "commit", servers, within_s=within_s)

    async def _undo(self, drivers: list[Any], parts: list[str], done: list[int]) -> None:
        """Roll back what was prepared; what cannot be reached is rolled back by a resolver, for want of a record."""
        for part in done:
            try:
                await drivers[part].execute(end(parts[part], commit=False))
            except DriverError as exc:
                log.warning("transaction %s: part %s will be rolled back by a resolver: %s", self.id, part, exc)

    def _not_prepared(self, exc: Any, server: str) -> Exception:
        if exc.sqlstate == DISABLED:
            return TwoPhaseDisabledError(
                f"server {server!r} allows no prepared transactions, so nothing was committed anywhere. Set "
                "max_prepared_transactions (to at least max_connections) and restart it, or use kit.outbox for effects on "
                "other tenants"
            )
        return TwoPhaseError(
            f"server {server!r} could not prepare its part of transaction {self.id}, so nothing was committed: {exc}"
        )


def reached(_step: str) -> None:
    """Where tests kill the coordinator."""
