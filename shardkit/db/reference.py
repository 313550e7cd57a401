"""Reference tables: one copy is written to, in the catalog's database, and every server follows it by replication."""

from __future__ import annotations

import time
from typing import Any, Final
from uuid import UUID

import psycopg
from psycopg import sql

from shardkit.core.names import REFERENCE_SCHEMA
from shardkit.errors import DeadlineError
from shardkit.settings import Secret
from shardkit.sql import statements

SQL = statements("reference")
Connection = psycopg.Connection[Any]
LOOK_EVERY_S: Final = 0.02


def slot_name(server_id: UUID) -> str:
    """Of a server's slot and subscription; slots share one name space in a PostgreSQL, whatever the database."""
    return f"shardkit_reference_{server_id.hex}"


def prepare(connection: Connection) -> None:
    """Make the schema of reference tables."""
    connection.execute(SQL["schema_reference"])


def publish(connection: Connection) -> None:
    """Publish the reference tables where they are written."""
    if not _yes(connection, "has_publication"):
        connection.execute(SQL["publish"])
    for (table,) in connection.execute(SQL["unpublished"]).fetchall():
        name = sql.Identifier(REFERENCE_SCHEMA, table)
        connection.execute(sql.SQL("ALTER PUBLICATION shardkit_reference ADD TABLE {}").format(name))


def follow(server: Connection, written: Connection, *, written_url: Secret, slot: str) -> None:
    """Let *server*, which has the tables, follow the written copy; tables that came since the last time are added.

    A server that lost its place in the stream (the written copy was restored from a dump, say), or followed once and left,
    begins anew: its tables are emptied and filled again.
    """
    server.execute(SQL["read_only"])
    if not _yes(written, "has_slot", slot=slot):
        unfollow(server, slot=slot)
        written.execute(SQL["make_slot"], {"slot": slot})
    name = sql.Identifier(slot)
    if not _yes(server, "has_subscription", slot=slot):
        _empty(server)
        server.execute(
            sql.SQL(
                "CREATE SUBSCRIPTION {} CONNECTION {} PUBLICATION shardkit_reference "
                "WITH (create_slot = false, slot_name = {}, enabled = true)"
            ).format(name, sql.Literal(str(written_url)), sql.Literal(slot))
        )
    else:
        server.execute(sql.SQL("ALTER SUBSCRIPTION {} CONNECTION {}").format(name, sql.Literal(str(written_url))))
        server.execute(sql.SQL("ALTER SUBSCRIPTION {} REFRESH PUBLICATION").format(name))


def _empty(server: Connection) -> None:
    tables = [sql.Identifier(REFERENCE_SCHEMA, table) for (table,) in server.execute(SQL["tables"]).fetchall()]
    if tables:
        server.execute(sql.SQL("TRUNCATE {}").format(sql.SQL(", ").join(tables)))


def wait_until_equal(server: Connection, written: Connection, *, slot: str, timeout_s: float) -> None:
    """Return when *server* has every row that was committed before the call. Raises DeadlineError."""
    deadline = time.monotonic() + timeout_s
    row = written.execute(SQL["position"]).fetchone()
    while True:
        lagging = server.execute(SQL["lagging"], {"slot": slot}).fetchone()
        if lagging and not lagging[0] and row and _yes(written, "caught_up", slot=slot, position=row[0]):
            return
        if time.monotonic() > deadline:
            raise DeadlineError(
                f"reference tables were not equal after {timeout_s:g} s ({', '.join(lagging[0]) if lagging else ''}): "
                "replication goes on by itself; look at pg_stat_subscription on the server"
            )
        time.sleep(LOOK_EVERY_S)


def unfollow(server: Connection, *, slot: str) -> None:
    """Let *server* follow no more; its copies of the tables stay as they are."""
    if _yes(server, "has_subscription", slot=slot):
        name = sql.Identifier(slot)
        server.execute(sql.SQL("ALTER SUBSCRIPTION {} DISABLE").format(name))
        server.execute(sql.SQL("ALTER SUBSCRIPTION {} SET (slot_name = NONE)").format(name))
        server.execute(sql.SQL("DROP SUBSCRIPTION {}").format(name))


def drop_slot(written: Connection, *, slot: str, timeout_s: float = 10.0) -> None:
    """Take a server's place in the stream away: a slot that nobody reads keeps the log until the disk is full."""
    deadline = time.monotonic() + timeout_s
    while _yes(written, "has_slot", slot=slot):
        written.execute(SQL["end_sender"], {"slot": slot})
        try:
            written.execute(SQL["drop_slot"], {"slot": slot})
        except psycopg.errors.ObjectInUse:
            if time.monotonic() > deadline:
                raise
            time.sleep(LOOK_EVERY_S)


def _yes(connection: Connection, statement: str, **values: object) -> bool:
    row = connection.execute(SQL[statement], values).fetchone()
    return bool(row and row[0])
