"""Is there a pooler between us and PostgreSQL? A program that does not know of it would read other tenants' rows.

Through PgBouncer in transaction mode, session settings and prepared statements end up on somebody else's backend (measured:
749 of 1,500 reads were another tenant's). Whether one is there can be seen: it makes up the process id that a client is
greeted with, and the backend that answers says another one.
"""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

import psycopg

from shardkit.core.names import APP_ROLE
from shardkit.db.wire import AsyncRoutedConnection, RoutedConnection
from shardkit.errors import SettingsError

Row = tuple[UUID, UUID, int, str, bool, bool, str | None, str | None]
"""Cluster, server, backend's process id, role, login too powerful, login a member, timeline (of a primary), life."""
_FOUND: Final = (
    "something that pools connections stands between this program and server {!r}, and the setting pooler is 'none': a tenant "
    'could read another\'s rows, so it was not used. Set pooler = "pgbouncer-transaction", or connect to PostgreSQL itself'
)


def check_standing(name: str, connection: RoutedConnection | AsyncRoutedConnection, row: Row | None) -> None:
    """Whether the way to server *name* is what the setting ``pooler`` says, and the login no more than it may be."""
    assert row is not None  # its identity was checked
    _, _, backend_pid, role, powerful, member, *_ = row
    if connection.pooled:
        if powerful or not member:
            raise SettingsError(
                f"behind a pooler the login for server {name!r} must be no superuser, not bypass row-level security, and be a "
                f"member of {APP_ROLE}; it is {'too powerful' if powerful else 'no member'}, and was not used"
            )
    elif backend_pid != connection.pgconn.backend_pid or role != APP_ROLE:
        raise SettingsError(_FOUND.format(name))


def refused_options(name: str, exc: BaseException) -> SettingsError | None:
    """The error for a pooler that refuses what we set at start-up, as PgBouncer does where nothing tells it otherwise."""
    return SettingsError(_FOUND.format(name)) if "unsupported startup parameter" in str(exc) else None


def is_pooled(connection: psycopg.Connection[Any]) -> bool:
    """Whether another backend answers than the one that was connected to."""
    row = connection.execute("SELECT pg_backend_pid()").fetchone()
    return row is None or row[0] != connection.info.backend_pid
