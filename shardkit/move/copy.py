"""Copies rows as they were at a snapshot: binary COPY piped from server to server, with no step per row but libpq's."""

from __future__ import annotations

import select
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import psycopg
from psycopg import pq, sql

from shardkit.errors import MoveRefusedError
from shardkit.move.ends import End, answers, wait_for_answer
from shardkit.move.structure import Table

BLOCK: Final = 128 * 1024
Copied = Callable[[int], None]
"""Hears how many more bytes were copied."""


@contextmanager
def slot_with_snapshot(end: End, slot: str, *, timeout_s: float) -> Iterator[str]:
    """Make *slot*; inside the block its snapshot can be used. Raises MoveRefusedError when old transactions stay open too
    long.
    """
    with end.connect(replication="database") as connection:
        command = sql.SQL("CREATE_REPLICATION_SLOT {} LOGICAL pgoutput (SNAPSHOT 'export')").format(sql.Identifier(slot))
        results = wait_for_answer(connection, command, timeout_s=timeout_s)
        if results is None:
            raise MoveRefusedError(
                f"server {end.name!r} has write transactions that have been open for {timeout_s:g} s, and a replication "
                "slot has to wait "
                "for all of them: end them (see pg_stat_activity, oldest xact_start), then resume"
            )
        name = results[0].get_value(0, 2)
        assert name is not None
        yield name.decode()


def copy_tables(
    source: End,
    target: End,
    schema: str,
    tables: Sequence[Table],
    *,
    snapshot: str | None,
    copied: Copied,
    into: str | None = None,
    rows: Callable[[Table], sql.Composable] | None = None,
) -> None:
    """Copy all rows of *tables*, as *snapshot* sees them (None: as they are now). *into* that schema; *rows*: only those.

    A whole table is copied frozen: nobody reads it yet, and who does later (the comparison first) has nothing to find out
    about its rows and to write back.
    """
    reader, writer = source.on("copy"), target.on("copy")
    with reader.transaction():
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        if snapshot is not None:
            reader.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(snapshot)))
        with writer.transaction():
            for table in tables:
                columns = sql.SQL(", ").join(map(sql.Identifier, table.columns))
                some = rows(table) if rows is not None else sql.SQL("ONLY {}").format(table.within(schema))
                out = sql.SQL("COPY (SELECT {} FROM {} t) TO STDOUT (FORMAT binary)").format(columns, some)
                there, frozen = table.within(into or schema), sql.SQL(", FREEZE" if rows is None else "")
                copy = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary{})").format(there, columns, frozen)
                if table.columns:
                    if rows is None:
                        writer.execute(sql.SQL("TRUNCATE ONLY {}").format(there))  # FREEZE asks for it
                    pipe(reader, out, writer, copy, copied)
    source.close("copy")
    target.close("copy")


def pipe(
    reader: psycopg.Connection[Any], out: sql.Composed, writer: psycopg.Connection[Any], into: sql.Composed, copied: Copied
) -> None:
    """Send what the COPY *out* gives on *reader* into the COPY *into* on *writer*. Where that fails both are closed."""
    try:
        _begin(reader.pgconn, out.as_bytes(reader), pq.ExecStatus.COPY_OUT)
        _begin(writer.pgconn, into.as_bytes(writer), pq.ExecStatus.COPY_IN)
        _carry(reader.pgconn, writer.pgconn, copied)
    except BaseException:  # in the middle of a COPY nothing else can be asked
        reader.close()
        writer.close()
        raise


def _carry(source: Any, target: Any, copied: Copied) -> None:
    block = bytearray()
    while True:
        count, data = source.get_copy_data(1)
        if count > 0:
            block += data
            if len(block) < BLOCK:
                continue
        elif count == 0:
            if not select.select([source.socket], [], [], 1.0)[0]:
                continue
            source.consume_input()
            continue
        if block:
            _put(target, bytes(block))
            copied(len(block))
            block.clear()
        if count < 0:
            break
    answers(source)
    target.put_copy_end()
    answers(target)


def _begin(wire: Any, command: bytes, expected: pq.ExecStatus) -> None:
    result = wire.exec_(command)
    if result.status != expected:
        raise psycopg.errors.error_from_result(result)


def _put(wire: Any, block: bytes) -> None:
    """Send *block*, and wait until the server takes it: libpq would keep whatever it does not take yet. Raises what it says."""
    wire.put_copy_data(block)
    while True:
        if select.select([wire.socket], [wire.socket], [])[0]:  # before the end it has only errors to tell
            wire.consume_input()
            wire.put_copy_end(b"the server spoke in the middle of a copy")
            answers(wire)
        if not wire.flush():
            return
