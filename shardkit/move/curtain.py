"""Hides one tenant's rows in a shard it has left, until they are removed; hung beforehand, drawn in the fence's own commit."""

from __future__ import annotations

import time
from typing import Final

from psycopg import errors, sql

from shardkit.core.names import APP_ROLE, OPERATOR_ROLE, SERVER_SCHEMA
from shardkit.errors import FenceTimeoutError
from shardkit.move.ends import End
from shardkit.move.share import Share
from shardkit.sql import statements

SQL: Final = statements("isolate")
PAUSE_S: Final = 0.05


def furnish(end: End) -> None:
    """Make what curtains need on a server."""
    with end.on().transaction():
        end.on().execute("SELECT pg_advisory_xact_lock(7105, 2)")
        end.on().execute("SET LOCAL client_min_messages = warning")
        end.on().execute(SQL["furniture"])


def hang(end: End, name: str, schema: str, share: Share, *, wait_ms: int, give_up_after_s: float) -> None:
    """Give every table of *schema* with rows of the tenant the policy *name*; it hides nothing until it is drawn.

    Each table is locked for a moment, and asked for *wait_ms* at a time, so that nobody waits longer behind it. Raises
    FenceTimeoutError.
    """
    hung = {table for there, table in end.on().execute(SQL["hung"], {"name": name}) if there == schema}
    for table, column in share.columns.items():
        if column is not None and table not in hung:
            rule = sql.SQL("{} IS DISTINCT FROM {} OR NOT (SELECT {}({}))").format(
                sql.Identifier(column),
                sql.Literal(share.tenant),
                sql.Identifier(SERVER_SCHEMA, "is_drawn"),
                sql.Literal(name),
            )
            policy = sql.SQL("CREATE POLICY {} ON {} AS RESTRICTIVE TO {}, {} USING ({}) WITH CHECK ({})").format(
                *map(sql.Identifier, (name,)), sql.Identifier(schema, table),
                *map(sql.Identifier, (APP_ROLE, OPERATOR_ROLE)), rule, rule,
            )  # fmt: skip
            _patiently(end, table, policy, wait_ms=wait_ms, give_up_after_s=give_up_after_s)


def drawing(name: str) -> sql.Composed:
    """Hides the rows, from its commit on."""
    return sql.SQL("INSERT INTO {} (name) VALUES ({}) ON CONFLICT DO NOTHING").format(
        sql.Identifier(SERVER_SCHEMA, "curtains"), sql.Literal(name)
    )


def take_down(end: End, name: str, *, wait_ms: int, give_up_after_s: float) -> None:
    """Take the policy *name* off every table, wherever its schema is called by now, and forget that it was drawn."""
    for schema, table in end.on().execute(SQL["hung"], {"name": name}).fetchall():
        off = sql.SQL("DROP POLICY IF EXISTS {} ON {}").format(sql.Identifier(name), sql.Identifier(schema, table))
        _patiently(end, table, off, wait_ms=wait_ms, give_up_after_s=give_up_after_s)
    if end.on().execute(SQL["has_curtains"]).fetchone() == (True,):
        end.on().execute(SQL["lift"], {"name": name})


def is_drawn(end: End, name: str) -> bool:
    """Whether the curtain *name* hides anything."""
    return end.on().execute(SQL["has_curtains"]).fetchone() == (True,) and (
        end.on().execute(SQL["drawn"], {"name": name}).fetchone() == (True,)
    )


def _holders(end: End, table: str) -> list[tuple[int, str, str]]:
    return end.on().execute(SQL["holders"], {"table": table}).fetchall()


def _patiently(
    end: End,
    table: str,
    command: sql.Composed,
    *,
    wait_ms: int,
    give_up_after_s: float,
) -> None:
    """Run *command*; its lock is asked for *wait_ms* at a time."""
    deadline = time.monotonic() + give_up_after_s
    while True:
        try:
            with end.on().transaction():
                end.on().execute(sql.SQL("SET LOCAL lock_timeout = {}").format(wait_ms))
                end.on().execute(command)
        except (errors.LockNotAvailable, errors.DeadlockDetected):
            if time.monotonic() > deadline:
                who = "; ".join(f"pid {pid} ({user}, {name or 'no name'})" for pid, user, name in _holders(end, table))
                raise FenceTimeoutError(
                    f"table {table} on server {end.name!r} could not be locked for a moment, because transactions that read or "
                    f"write it stay open: {who or 'nobody now'}. Nothing was switched over; end them, then resume"
                ) from None
            time.sleep(PAUSE_S)
        else:
            return
