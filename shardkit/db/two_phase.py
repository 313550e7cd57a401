"""The statements of a two-phase commit, which PostgreSQL takes as text only."""

from __future__ import annotations

from typing import Any, NamedTuple

import psycopg
from psycopg import sql

from shardkit.core.names import Gid, parse_gid
from shardkit.sql import statements

SQL = statements("decisions")
DISABLED = "55000"
"""SQLSTATE of PREPARE TRANSACTION where max_prepared_transactions = 0, and of a prepared transaction that is busy."""
GONE = "42704"
"""SQLSTATE of ending a prepared transaction that somebody else has ended."""


def prepare(name: str) -> bytes:
    """First phase, on the connection that holds the transaction."""
    return sql.SQL("PREPARE TRANSACTION {}").format(sql.Literal(name)).as_bytes(None)


def end(name: str, *, commit: bool) -> bytes:
    """Second phase, on any connection of the same role and database."""
    verb = sql.SQL("COMMIT PREPARED {}") if commit else sql.SQL("ROLLBACK PREPARED {}")
    return verb.format(sql.Literal(name)).as_bytes(None)


class Prepared(NamedTuple):
    """A transaction that waits for its second phase, on one server. ``overdue``: its time is over. ``locks`` are held."""

    name: str
    gid: Gid
    age_s: float
    overdue: bool
    locks: int


def prepared(connection: psycopg.Connection[Any], *, cluster: str) -> list[Prepared]:
    """Prepared transactions of *cluster* (32 hexadecimal digits) in this database."""
    rows = connection.execute(SQL["prepared"], {"like": f"shardkit:{cluster}:%"}).fetchall()
    return [Prepared(row[0], gid, *row[1:]) for row in rows if (gid := parse_gid(row[0])) is not None]


def end_prepared(connection: psycopg.Connection[Any], name: str, *, commit: bool) -> bool:
    """Second phase; False if somebody else has done it, or does it now."""
    try:
        connection.execute(end(name, commit=commit))
    except (psycopg.errors.UndefinedObject, psycopg.errors.ObjectNotInPrerequisiteState):
        return False
    return True


def most_prepared(connection: psycopg.Connection[Any]) -> int:
    """How many prepared transactions the server allows."""
    row = connection.execute(SQL["most_prepared"]).fetchone()
    return int(row[0]) if row else 0
