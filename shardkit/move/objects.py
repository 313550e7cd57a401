"""Drops what a move made, wherever it is and however far it got. What is not there is fine; a live shard is never dropped."""

from __future__ import annotations

import time
from typing import Any, Final

import psycopg
from psycopg import errors, sql

from shardkit.db.publications import drop_publication
from shardkit.errors import MoveError
from shardkit.move.ends import SQL, End

SLOT_TIMEOUT_S: Final = 20.0


def drop(end: End, kind: str, name: str) -> None:
    """Drop the object *name* of *kind* on *end*."""
    _DROPS[kind](end, name)


def _subscription(end: End, name: str) -> None:
    if not end.one("subscription_exists", name=name):
        return
    it = sql.Identifier(name)
    for command in ("ALTER SUBSCRIPTION {} DISABLE", "ALTER SUBSCRIPTION {} SET (slot_name = NONE)", "DROP SUBSCRIPTION {}"):
        end.on().execute(sql.SQL(command).format(it))


def _slot(end: End, name: str) -> None:
    deadline = time.monotonic() + SLOT_TIMEOUT_S
    while (row := end.on().execute(SQL["slot"], {"name": name}).fetchone()) is not None:
        if row[0] is not None:
            end.one("end_session", pid=row[0])
        try:
            end.one("drop_slot", name=name)
        except errors.ObjectInUse:
            if time.monotonic() > deadline:
                raise MoveError(
                    f"the replication slot {name} on server {end.name!r} stays in use by process {row[0]}"
                ) from None
            time.sleep(0.02)


def _publication(end: End, name: str) -> None:
    drop_publication(end.on(), name)


def _schema(end: End, name: str) -> None:
    connection: psycopg.Connection[Any] = end.on()
    with connection.transaction():
        connection.execute("SET LOCAL lock_timeout = '10s'")
        connection.execute("SET LOCAL client_min_messages = warning")
        connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(name)))


def _marks(end: End, lane: str) -> None:
    if end.on().execute("SELECT to_regclass('shardkit.move_marks')").fetchone() != (None,):
        end.on().execute(SQL["drop_marks"], {"lane": lane})


_DROPS: Final = {"subscription": _subscription, "slot": _slot, "publication": _publication, "schema": _schema, "marks": _marks}
