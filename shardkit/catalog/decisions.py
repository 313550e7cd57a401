"""The record of what was decided about transactions over several shards; it is written before anybody acts on it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Literal, TypeVar
from uuid import UUID

from shardkit.db.connect import connect_admin, lost
from shardkit.errors import ServerDownError
from shardkit.settings import Settings
from shardkit.sql import statements

SQL = statements("decisions")
Decision = Literal["commit", "abort"]
T = TypeVar("T")
PAUSE_S = 0.05


class Decisions:
    """The catalog's decisions, over one connection, which is replaced when it breaks."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._connection: Any = None

    def decide(self, txn: UUID, outcome: Decision, servers: list[str], *, within_s: float) -> Decision:
        """Record *outcome* unless something else was recorded before; gives what holds.

        Repeated until the catalog has answered: the first decision is the only one, so that repeating it does no harm.
        Raises ServerDownError when it did not answer in time; the decision may or may not be recorded then.
        """

        def work(connection: Any) -> Decision:
            connection.execute(SQL["decide"], {"txn": txn, "outcome": outcome, "servers": servers})
            recorded: Decision = connection.execute(SQL["outcome"], {"txn": txn}).fetchone()[0]
            return recorded

        give_up = time.monotonic() + within_s
        while True:
            try:
                return self._ask(work)
            except ServerDownError:
                if time.monotonic() + PAUSE_S > give_up:
                    raise
                time.sleep(PAUSE_S)

    def outcome(self, txn: UUID) -> Decision | None:
        """What was decided, if anything."""
        row = self._ask(lambda connection: connection.execute(SQL["outcome"], {"txn": txn}).fetchone())
        return row[0] if row else None

    def finish(self, txn: UUID) -> None:
        """The second phase is done everywhere."""
        self._ask(lambda connection: connection.execute(SQL["finish"], {"txn": txn}))

    def unfinished(self) -> list[tuple[UUID, list[str]]]:
        """Transactions whose second phase may not be done everywhere, with their servers. Forgets those long finished."""

        def work(connection: Any) -> list[tuple[UUID, list[str]]]:
            connection.execute(SQL["purge"])
            return [(txn, servers) for txn, servers in connection.execute(SQL["unfinished"])]

        return self._ask(work)

    def moment(self) -> str | None:
        """A moment at which no commit was being carried out; None if one is."""
        moment, under_way = self._ask(lambda connection: connection.execute(SQL["moment"]).fetchone())
        return None if under_way else moment

    def decided_since(self, moment: str) -> bool:
        """Whether a commit was decided since *moment*."""
        return bool(self._ask(lambda connection: connection.execute(SQL["decided_since"], {"moment": moment}).fetchone())[0])

    def close(self) -> None:
        """Give the connection up."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _ask(self, work: Callable[[Any], T]) -> T:
        with self._lock:
            if self._connection is None or self._connection.closed:
                self._connection = connect_admin(self._settings.catalog_url, self._settings)
            with lost(self._connection, "the catalog"):
                return work(self._connection)
