"""The two ends of a move: administrative connections to a server, opened when first used, by name."""

from __future__ import annotations

import contextlib
import math
import select
import time
from typing import Any, Final

import psycopg
from psycopg import pq, sql

from shardkit.core.moving import LostContact
from shardkit.db.connect import conninfo
from shardkit.errors import MoveError, ServerDownError
from shardkit.settings import Settings
from shardkit.sql import statements

SQL = statements("move")
SESSION: Final = (
    "-c search_path= -c row_security=off -c statement_timeout=0 -c lock_timeout=0 -c idle_in_transaction_session_timeout=0 "
    "-c datestyle=ISO -c intervalstyle=postgres -c timezone=UTC -c extra_float_digits=1 -c bytea_output=hex -c jit=off "
    "-c default_transaction_isolation=read\\ committed -c max_parallel_workers_per_gather=0 "
    "-c plan_cache_mode=force_generic_plan"
)
"""Nothing of a role's or database's own settings may change what is copied or compared; policies stop a copy, never thin it.
And a statement is one process: the comparison's would else take six at once, which are the writers' then.
What is prepared is planned once, and that before the fence."""

DISK_FULL: Final = "53100"
PAUSE_S: Final = 0.005


class End:
    """One server of a move. Everything done here is done by sessions called *session*."""

    def __init__(self, name: str, url: str, settings: Settings, *, session: str) -> None:
        self.name, self.url, self.session = name, url, session
        self._settings = settings
        self._connections: dict[str, psycopg.Connection[Any]] = {}

    def on(self, purpose: str = "main") -> psycopg.Connection[Any]:
        """The connection for *purpose*, in autocommit."""
        known = self._connections.get(purpose)
        if known is None or known.closed:
            known = self._connections[purpose] = self.connect()
        return known

    def connect(self, **extra: Any) -> psycopg.Connection[Any]:
        """One more connection, which the caller closes."""
        try:
            return psycopg.connect(self.conninfo(**extra), autocommit=True)
        except psycopg.OperationalError as exc:
            raise ServerDownError(f"server {self.name!r} does not answer: {str(exc).strip().partition(chr(10))[0]}") from exc

    def conninfo(self, **extra: Any) -> str:
        """Libpq connection string of such a session."""
        return conninfo(self.url, self._settings, application_name=self.session, options=SESSION, **extra)

    def conninfo_of_subscription(self) -> str:
        """How the other server reaches this one, to apply its changes."""
        return conninfo(self.url, self._settings, application_name=self.session.replace("move", "apply"))

    def one(self, name: str, /, *, on: str = "main", **parameters: Any) -> Any:
        """First column of the first row of one of our statements; None without a row."""
        row = self.on(on).execute(SQL[name], parameters).fetchone()
        return None if row is None else row[0]

    def outlast(self, *, timeout_s: float = math.inf) -> bool:
        """Wait until every transaction that has written here so far has ended; False if one has not after *timeout_s*.

        What a slot begins behind is in the log, but not for certain to be seen yet: a commit is written some time before others
        see it (while it is flushed, and until synchronous standbys have it). Who makes a slot and then reads needs both.
        """
        deadline, number = time.monotonic() + timeout_s, self.one("number_now")
        while not self.one("all_ended", number=number):
            if time.monotonic() > deadline:
                return False
            time.sleep(PAUSE_S)
        return True

    @property
    def version(self) -> int:
        """Such as 180000."""
        return self.on().info.server_version

    def close(self, purpose: str | None = None) -> None:
        """Close one connection, or all."""
        for name in [purpose] if purpose else list(self._connections):
            connection = self._connections.pop(name, None)
            if connection is not None:
                with contextlib.suppress(psycopg.Error):
                    connection.close()


@contextlib.contextmanager
def contact() -> Any:
    """Inside the block a connection that breaks is LostContact; other errors of a server are MoveErrors that quote its
    message.
    """
    try:
        yield
    except psycopg.Error as exc:
        text = str(exc).strip().partition("\n")[0]
        if exc.sqlstate is None or exc.sqlstate.startswith(("08", "57P", "25P")):
            raise LostContact(text) from exc
        if exc.sqlstate == DISK_FULL:
            raise MoveError(
                f"a server has no room left: {text}; the source goes on serving. Make room, then resume, or abort"
            ) from exc
        raise MoveError(f"a server refused: {text}; the source goes on serving") from exc


def wait_for_answer(
    connection: psycopg.Connection[Any], command: sql.Composable, *, timeout_s: float
) -> list[pq.abc.PGresult] | None:
    """Results of *command*; None, and it is cancelled, after *timeout_s*. For what no server-side time-out ends."""
    wire, deadline = connection.pgconn, time.monotonic() + timeout_s
    wire.send_query(command.as_bytes(connection))
    found = answers(wire, deadline=deadline)
    if found is None:
        connection.cancel_safe(timeout=5)
    return found


def answers(wire: pq.abc.PGconn, *, deadline: float = math.inf) -> list[pq.abc.PGresult] | None:
    """All results of what was sent on *wire*; None once *deadline* has passed. Raises the first error among them.

    libpq's own way to wait holds up every thread of the process, and never ends where the server answered while it was still
    being sent to.
    """
    found: list[pq.abc.PGresult] = []
    while True:
        while (unsent := wire.flush()) or wire.is_busy():
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            if select.select([wire.socket], [wire.socket] if unsent else [], [], min(left, 1.0))[0]:
                wire.consume_input()
        result = wire.get_result()
        if result is None:
            break
        found.append(result)
    for result in found:
        if result.status == pq.ExecStatus.FATAL_ERROR:
            raise psycopg.errors.error_from_result(result)
    return found
