"""What became of a COMMIT whose answer was lost: the server remembers, if it is asked by the transaction's id."""

from __future__ import annotations

import time
from uuid import UUID

import psycopg

from shardkit.core.shardmap import Server
from shardkit.db.connect import connect_living
from shardkit.db.lineage import Lineage, OldPrimaryError
from shardkit.errors import CommitUnknownError, Outcome, ServerError
from shardkit.settings import Settings

TRY_FOR_S = 10.0
PAUSE_S = 0.1


def settle(error: CommitUnknownError, server: Server, settings: Settings, *, cluster_id: UUID, lineage: Lineage) -> Outcome:
    """Done or not done, if *server* can be asked within ten seconds; else unknown, as before.

    A transaction that is still open there (its COMMIT never arrived) is ended first: its client is gone. After a failover the
    same number can belong to another transaction, so a server on another timeline is not believed.
    """
    if error.xid is None:
        return Outcome.UNKNOWN
    give_up = time.monotonic() + TRY_FOR_S
    while time.monotonic() < give_up:
        try:
            with connect_living(server, settings, cluster_id=cluster_id, lineage=lineage) as connection:
                if error.timeline is not None and _timeline(connection) != error.timeline:
                    return Outcome.UNKNOWN
                status = connection.execute("SELECT pg_xact_status(%s::text::xid8)", (error.xid,)).fetchone()
                if status is None or status[0] is None:
                    return Outcome.UNKNOWN
                if status[0] != "in progress":
                    return Outcome.DONE if status[0] == "committed" else Outcome.NOT_DONE
                if error.backend_pid:  # unknown behind a pooler, which ends what its client left open
                    connection.execute("SELECT pg_terminate_backend(%s, 2000)", (error.backend_pid,))
        except OldPrimaryError:
            return Outcome.UNKNOWN
        except (ServerError, psycopg.OperationalError):
            pass  # it may be coming up again
        time.sleep(PAUSE_S)
    return Outcome.UNKNOWN


def _timeline(connection: psycopg.Connection[tuple[str]]) -> str | None:
    row = connection.execute("SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)").fetchone()
    return row[0] if row else None
