"""What became of a COMMIT whose answer was lost: the server remembers, if it is asked by the transaction's id."""

from __future__ import annotations

import time
from typing import Any, Final
from uuid import UUID

import psycopg

from shardkit.core.shardmap import Server
from shardkit.db.connect import connect_living
from shardkit.db.lineage import Lineage, OldPrimaryError
from shardkit.errors import CommitUnknownError, Outcome, ServerError
from shardkit.settings import Settings
from shardkit.sql import statements

SQL: Final = statements("server")
TRY_FOR_S: Final = 10.0
PAUSE_S: Final = 0.1


def settle(error: CommitUnknownError, server: Server, settings: Settings, *, cluster_id: UUID, lineage: Lineage) -> Outcome:
    """Done or not done, if *server* can be asked within ten seconds; else unknown, as before.

    A transaction that is still open there (its COMMIT never arrived) is ended first: its client is gone. After a failover the
    same number can belong to another transaction, so a server on another timeline is not believed. After a crash it can too,
    where nothing of ours had reached the disk: then only its "committed" says nothing.
    """
    if error.xid is None:
        return Outcome.UNKNOWN
    give_up = time.monotonic() + TRY_FOR_S
    while time.monotonic() < give_up:
        try:
            with connect_living(server, settings, cluster_id=cluster_id, lineage=lineage) as connection:
                timeline, life = _standing(connection)
                if error.timeline is not None and timeline != error.timeline:
                    return Outcome.UNKNOWN
                same = error.life is not None and life == error.life
                status = _status(connection, error.xid)
                if status is None or (status == "committed" and not same):
                    return Outcome.UNKNOWN
                if status != "in progress":
                    return Outcome.DONE if status == "committed" else Outcome.NOT_DONE
                if same and error.backend_pid:  # unknown behind a pooler, which ends what its client left open
                    connection.execute("SELECT pg_terminate_backend(%s, 2000)", (error.backend_pid,))
        except OldPrimaryError:
            return Outcome.UNKNOWN
        except (ServerError, psycopg.OperationalError):
            pass  # it may be coming up again
        time.sleep(PAUSE_S)
    return Outcome.UNKNOWN


def _standing(connection: psycopg.Connection[tuple[Any, ...]]) -> tuple[str | None, str | None]:
    """The server's timeline, and its life."""
    row = connection.execute(SQL["standing"]).fetchone()
    return (row[0], row[1]) if row else (None, None)


def _status(connection: psycopg.Connection[tuple[Any, ...]], xid: str) -> str | None:
    """What the server says of a transaction; None for one that is too long ago."""
    try:
        row = connection.execute(SQL["became"], {"xid": xid}).fetchone()
    except psycopg.errors.InvalidParameterValue:  # "in the future": a crash took it, and nobody has its id yet
        return "aborted"
    return row[0] if row else None
