"""Ends publications of tables that are written to: DROP PUBLICATION alone fails writers.

PostgreSQL looks up what a table is published in when it is first written to, name by name: a statement that has the list and
finds one of its publications gone ends in "cache lookup failed for publication". So the tables are taken out first, and what is
under way then is waited for; who comes later does not find it in his list.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import psycopg
from psycopg import errors, sql

from shardkit.sql import statements

SQL: Final = statements("publications")
PATIENCE_S: Final = 5.0
LOCK_TIMEOUT: Final = "2s"


def drop_publication(connection: psycopg.Connection[Any], name: str) -> None:
    """Drop the publication *name*, if it is there. *connection* is in autocommit."""
    tables = connection.execute(SQL["tables"], {"name": name}).fetchall()
    if tables:
        names = sql.SQL(", ").join(sql.Identifier(schema, table) for schema, table, _ in tables)
        with suppress(errors.LockNotAvailable), connection.transaction():
            connection.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(LOCK_TIMEOUT)))
            connection.execute(sql.SQL("ALTER PUBLICATION {} DROP TABLE {}").format(sql.Identifier(name), names))
        _await_writers(connection, [oid for *_, oid in tables])
    connection.execute(sql.SQL("DROP PUBLICATION IF EXISTS {}").format(sql.Identifier(name)))


def _await_writers(connection: psycopg.Connection[Any], tables: Sequence[int]) -> None:
    """Until every statement that writes to one of *tables* now has ended, or PATIENCE_S."""
    row = connection.execute(SQL["writers"], {"tables": list(tables)}).fetchone()
    assert row is not None
    given, give_up = {"writers": row[0], "then": row[1]}, time.monotonic() + PATIENCE_S
    while row[0] and connection.execute(SQL["still_at_it"], given).fetchone() == (True,) and time.monotonic() < give_up:
        time.sleep(0.002)
