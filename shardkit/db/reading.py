"""Reads a shard's answer to SQL text of an operator, batch by batch, in a transaction that cannot write."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import sql

from shardkit.db.scatter import ScatterConnection, view
from shardkit.errors import FanOutRefusedError

Row = tuple[Any, ...]


@contextmanager
def reading(
    connection: ScatterConnection, schema: str, query: str, *, batch: int
) -> Iterator[tuple[list[str], Iterator[list[Row]]]]:
    """Columns and batches of at most *batch* rows of *query*, with *schema* as the only one in the path.

    *query* is the operator's own SQL, one SELECT; the role, and a read-only transaction, see to it that it only reads.
    """
    connection.execute(view())
    try:
        connection.execute(sql.SQL("SET LOCAL search_path TO {}").format(sql.Identifier(schema)))
        try:
            connection.execute(b"DECLARE shardkit_export NO SCROLL CURSOR FOR " + query.encode())
        except psycopg.errors.SyntaxError as exc:
            raise FanOutRefusedError(f"this is not one SELECT: {exc}") from exc
        fetch = sql.SQL("FETCH FORWARD {} FROM shardkit_export").format(sql.Literal(batch))
        cursor = connection.execute(fetch)
        columns = [column.name for column in cursor.description or ()]
        yield columns, _batches(connection, cursor, fetch)
    finally:
        if not connection.closed:
            connection.execute("ROLLBACK")


def _batches(connection: ScatterConnection, cursor: psycopg.Cursor[Any], fetch: sql.Composed) -> Iterator[list[Row]]:
    rows = cursor.fetchall()
    while rows:
        yield rows
        rows = connection.execute(fetch).fetchall()
