"""The one door to PostgreSQL: who connects, over what transport, and whether the server behind the DSN is the right one."""

from __future__ import annotations

import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, LiteralString
from uuid import UUID

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from shardkit.core.names import APP_ROLE
from shardkit.core.shardmap import Server
from shardkit.db.wire import AsyncRoutedConnection, AsyncRoutedCursor, RoutedConnection, RoutedCursor
from shardkit.errors import PoolTimeoutError, ServerDownError, ServerError, SettingsError, ShardKitError, WrongServerError
from shardkit.settings import Secret, Settings, is_loopback

_IDENTITY: Final = "SELECT cluster_id, server_id FROM shardkit.identity"
_CREDENTIALS: Final = ("user", "password", "passfile", "sslmode", "sslrootcert", "sslcert", "sslkey")


def conninfo(url: str, settings: Settings, **extra: Any) -> Secret:
    """Libpq connection string for *url* with our time-outs; refuses a transport that could be listened to."""
    given = parsed(url)
    check_transport(given, insecure=settings.insecure_transport)
    ours = {
        "connect_timeout": max(1, round(settings.connect_timeout_s)),
        "tcp_user_timeout": round(settings.tcp_timeout_s * 1000),
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": max(1, round((settings.tcp_timeout_s - 5) / 2)),
        "application_name": settings.application_name,
    }
    return Secret(make_conninfo(url, **{**ours, **{k: v for k, v in given.items() if k in ours}, **extra}))


def parsed(url: str) -> dict[str, Any]:
    """The parts of a database URL. Raises SettingsError."""
    try:
        return conninfo_to_dict(url)
    except psycopg.Error:  # its text would quote parts of the password
        raise SettingsError(
            "a database URL could not be parsed by libpq (its text is not shown, it may hold a password)"
        ) from None


def check_transport(given: dict[str, Any], *, insecure: bool) -> None:
    """Refuse a host off loopback whose certificate and name nobody verifies."""
    hosts = [h for key in ("hostaddr", "host") for h in str(given.get(key) or "").split(",") if h]
    if insecure or given.get("sslmode") == "verify-full" or all(map(is_loopback, hosts)):
        return
    raise SettingsError(
        f"host {', '.join(hosts)} is not on loopback and sslmode is {given.get('sslmode') or 'not set'}: anybody in between "
        "could read or change everything. Use sslmode=verify-full, or write out insecure_transport = true"
    )


def server_url(server: Server, settings: Settings) -> str:
    """URL with credentials: the settings' own for this server, else the map's DSN with the catalog's credentials."""
    if server.name in settings.servers:
        return settings.servers[server.name]
    catalog, own = parsed(settings.catalog_url), parsed(server.dsn)
    return make_conninfo(server.dsn, **{k: catalog[k] for k in _CREDENTIALS if catalog.get(k) and not own.get(k)})


def app_conninfo(server: Server, settings: Settings) -> Secret:
    """How application code connects: as the least role, and with an empty path, so that unrouted names fail."""
    direct = settings.pooler == "none"
    return conninfo(
        server_url(server, settings),
        settings,
        **({"options": f"-c role={APP_ROLE} -c search_path= -c client_connection_check_interval=2s"} if direct else {}),
    )


def connect(server: Server, settings: Settings, *, cluster_id: UUID) -> RoutedConnection:
    """A routed connection to *server*, which was asked for its identity.

    Raises ServerDownError, WrongServerError, or PoolTimeoutError for one more than the budget allows.
    """
    check_budget(server, settings)
    try:
        connection = RoutedConnection.connect(app_conninfo(server, settings), autocommit=True, cursor_factory=RoutedCursor)
    except psycopg.OperationalError as exc:
        raise down(server, exc) from exc
    try:
        _tune(connection, server, settings)
        _check_identity(server, cluster_id, connection.execute(_IDENTITY).fetchone())
    except BaseException as exc:
        connection.close()
        raise _explained(server, exc) from exc
    return connection


async def connect_async(server: Server, settings: Settings, *, cluster_id: UUID) -> AsyncRoutedConnection:
    """The same for asyncio."""
    check_budget(server, settings)
    try:
        connection = await AsyncRoutedConnection.connect(
            app_conninfo(server, settings), autocommit=True, cursor_factory=AsyncRoutedCursor
        )
    except psycopg.OperationalError as exc:
        raise down(server, exc) from exc
    try:
        _tune(connection, server, settings)
        _check_identity(server, cluster_id, await (await connection.execute(_IDENTITY)).fetchone())
    except BaseException as exc:
        await connection.close()
        raise _explained(server, exc) from exc
    return connection


def connect_admin(
    url: str, settings: Settings, *, name: str = "the catalog", autocommit: bool = True
) -> psycopg.Connection[Any]:
    """A plain connection with the rights of *url*, for the catalog and for operators' work on a server."""
    try:
        return psycopg.connect(conninfo(url, settings), autocommit=autocommit)
    except psycopg.OperationalError as exc:
        raise ServerDownError(f"{name} does not answer: {_first_line(exc)}; nothing was done") from exc


@contextmanager
def at(url: str, settings: Settings, *, name: str, then: str = "nothing was changed") -> Iterator[psycopg.Connection[Any]]:
    """An administrative connection to *name* for the block; what PostgreSQL says in it becomes an error of ours.

    *then* ends the message: what has become of the work, and what to do.
    """
    connection = connect_admin(url, settings, name=name)
    try:
        with connection:
            yield connection
    except psycopg.OperationalError as exc:
        raise ServerDownError(f"{name} failed or went away: {_first_line(exc)}; {then}") from exc
    except psycopg.Error as exc:
        raise ServerError(f"{name} refused: {_first_line(exc)}; {then}") from exc


def down(server: Server, exc: BaseException) -> ServerDownError:
    """The error for a *server* that could not be reached."""
    return ServerDownError(f"server {server.name!r} does not answer: {_first_line(exc)}; nothing was sent")


_held: defaultdict[UUID, weakref.WeakSet[Any]] = defaultdict(weakref.WeakSet)
"""Connections of this process, by server: the budget counts those of all pools together."""


def check_budget(server: Server, settings: Settings) -> None:
    """Refuse one more connection to *server* than the budget of this process allows."""
    held = sum(not connection.closed for connection in list(_held[server.server_id]))
    if held >= settings.connection_budget:
        raise PoolTimeoutError(
            f"this process holds {held} connections to server {server.name!r}, all its budget allows: nothing was sent. "
            "Close sessions sooner, or raise connection_budget (and max_connections)"
        )


def _tune(connection: RoutedConnection | AsyncRoutedConnection, server: Server, settings: Settings) -> None:
    _held[server.server_id].add(connection)
    connection.call_timeout_s = settings.call_timeout_s
    connection.backend_pid = connection.pgconn.backend_pid
    connection.prepare_threshold = 1 if settings.pooler == "none" else None
    connection.prepared_max = settings.prepared_max


def _check_identity(server: Server, cluster_id: UUID, row: tuple[UUID, UUID] | None) -> None:
    if row is None or row[0] != cluster_id:
        raise WrongServerError(
            f"the database behind server {server.name!r} belongs to {'no cluster' if row is None else 'another cluster'}: "
            "it was not used. Correct the server's DSN"
        )
    if row[1] != server.server_id:
        raise WrongServerError(
            f"the database behind server {server.name!r} is another server of this cluster: it was not used. Correct its DSN"
        )


def _explained(server: Server, exc: BaseException) -> BaseException:
    if isinstance(exc, psycopg.errors.UndefinedTable | psycopg.errors.InvalidSchemaName | psycopg.errors.InsufficientPrivilege):
        return WrongServerError(
            f"the database behind server {server.name!r} holds no shardkit identity: it was not used. Correct the server's DSN"
        )
    return exc


def _first_line(exc: BaseException) -> str:
    return str(exc).strip().partition("\n")[0]


@contextmanager
def transaction(connection: psycopg.Connection[Any], *, isolation: str = "READ COMMITTED") -> Iterator[None]:
    """A transaction on an administrative connection, at *isolation*."""
    connection.isolation_level = psycopg.IsolationLevel[isolation.replace(" ", "_")]
    with connection.transaction():
        yield


@contextmanager
def instead_of(constraints: Mapping[str, ShardKitError]) -> Iterator[None]:
    """Inside the block, the violation of a constraint named in *constraints* raises the error given for it."""
    try:
        yield
    except psycopg.errors.IntegrityError as exc:
        ours = constraints.get(exc.diag.constraint_name or "")
        if ours is None:
            raise
        raise ours from exc


def listen(connection: psycopg.Connection[Any], channel: str) -> psycopg.Connection[Any]:
    """*connection*, listening on *channel*."""
    connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
    return connection


def wait_for_notice(connection: psycopg.Connection[Any], *, timeout_s: float, unless: threading.Event) -> None:
    """Return when a notification came, *timeout_s* has passed, or *unless* is set (looked at every quarter of a second)."""
    deadline = time.monotonic() + timeout_s
    while not unless.is_set() and (left := deadline - time.monotonic()) > 0:
        if any(True for _ in connection.notifies(timeout=min(left, 0.25), stop_after=1)):
            return


def is_closed(server: Server, settings: Settings, *, cluster_id: UUID, schema: str) -> bool:
    """Whether *schema* is gone from *server*. Asked on a connection of its own, from whatever thread met the fence."""
    with connect(server, settings, cluster_id=cluster_id) as connection:
        row = connection.execute("SELECT to_regnamespace(%s) IS NULL", (schema,)).fetchone()
        return row is not None and bool(row[0])


def public_dsn(url: str) -> str:
    """*url* without secrets and credentials, as the catalog stores it."""
    given = parsed(url)
    return make_conninfo(
        "",
        **{k: v for k, v in given.items() if k in ("host", "hostaddr", "port", "dbname", "sslmode", "target_session_attrs")},
    )


def execute_script(connection: Any, script: LiteralString) -> None:
    """Run SQL of our own through a SQLAlchemy connection."""
    connection.exec_driver_sql(script)
