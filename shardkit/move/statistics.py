"""Brings along what the planner knows of a shard's tables, so that its statements keep their plans from the first one on."""

from __future__ import annotations

from typing import Final

from psycopg import sql

from shardkit.move.ends import End
from shardkit.sql import statements

SQL: Final = statements("statistics")
CAN_RESTORE: Final = 180_000


def carry_statistics(source: End, target: End, schema: str) -> None:
    """Give *schema* on the target the statistics it has on the source, where both are PostgreSQL 18 or newer.

    An ANALYZE of 100 MB costs half a second of processor time, just while the copy is being compared; this costs 10 ms.
    """
    if min(source.version, target.version) < CAN_RESTORE:
        return
    sizes, columns = (source.on().execute(SQL[what], {"schema": schema}).fetchall() for what in ("sizes", "columns"))
    with target.on().transaction(), target.on().cursor() as cursor:
        for statement, rows in (("set_size", sizes), ("set_column", columns)):
            cursor.executemany(SQL[statement], [(source.version, schema, *row) for row in rows])


def analyze_unknown(target: End, schema: str) -> None:
    """Let the target look for itself at tables of *schema* for which there are no statistics."""
    connection = target.on("analyze")
    unknown = [name for (name,) in connection.execute(SQL["unknown"], {"schema": schema})]
    if unknown:
        names = sql.SQL(", ").join(sql.Identifier(schema, name) for name in unknown)
        connection.execute(sql.SQL("ANALYZE {}").format(names))
