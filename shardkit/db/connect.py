"""The one door to PostgreSQL: who connects, over what transport, and whether the server behind the DSN is the right one."""

from __future__ import annotations

import asyncio
import os
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
from shardkit.db.lineage import Lineage
from shardkit.db.living import HOST_CONNECT_S, LOOK_AROUND, check_living, hosts_of, way_to
from shardkit.db.pooler import Row, check_standing, is_pooled, refused_options
from shardkit.db.wire import AsyncRoutedConnection, AsyncRoutedCursor, RoutedConnection, RoutedCursor
from shardkit.errors import (
    Outcome,
    PoolTimeoutError,
    ServerDownError,
    ServerError,
    SettingsError,
    ShardKitError,
    WrongServerError,
)
from shardkit.settings import Secret, Settings, is_loopback

IDENTITY: Final = LOOK_AROUND
_LIBPQ_VARIABLES: Final = {"host": "PGHOST", "hostaddr": "PGHOSTADDR", "service": "PGSERVICE", "sslmode": "PGSSLMODE"}
_WATCH: Final = "SET client_connection_check_interval = 2000"
_WATCH_OPTION: Final = "-c client_connection_check_interval=2000"
_CREDENTIALS: Final = ("user", "password", "passfile", "sslmode", "sslrootcert", "sslcert", "sslkey")


def conninfo(url: str, settings: Settings, **extra: Any) -> Secret:
    """Libpq connection string for *url* with our time-outs; refuses a transport that could be listened to."""
    given = parsed(url)
    check_transport(given, insecure=settings.insecure_transport)
    ours: dict[str, Any] = {
        "connect_timeout": max(1, round(settings.connect_timeout_s)),
        "tcp_user_timeout": round(settings.tcp_timeout_s * 1000),
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": max(1, round((settings.tcp_timeout_s - 5) / 2)),
        "application_name": settings.application_name,
    }
    if len(hosts_of(given)) > 1:  # the limit is for each host, and one of them may be gone for good
        ours |= {"target_session_attrs": "read-write", "connect_timeout": min(ours["connect_timeout"], HOST_CONNECT_S)}
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
    """Refuse a host off loopback whose certificate and name nobody verifies; what a URL leaves out libpq takes elsewhere."""
    given = {**{key: os.environ.get(name) for key, name in _LIBPQ_VARIABLES.items()}, **given}
    hosts = [h for key in ("hostaddr", "host") for h in str(given[key] or "").split(",") if h]
    safe = all(map(is_loopback, hosts)) and not given["service"]
    if insecure or given["sslmode"] == "verify-full" or safe:
        return
    where = f"host {', '.join(hosts)}" if hosts else f"service {given['service']}"
    raise SettingsError(
        f"{where} is not on loopback and sslmode is {given['sslmode'] or 'not set'}: anybody in between could read or change "
        "everything. Use sslmode=verify-full, or write out insecure_transport = true"
    )


def server_url(server: Server, settings: Settings) -> str:
    """URL with credentials: the settings' own for this server, else the map's DSN with the catalog's credentials."""
    if server.name in settings.servers:
        return settings.servers[server.name]
    catalog, own = parsed(settings.catalog_url), parsed(server.dsn)
    return make_conninfo(server.dsn, **{k: catalog[k] for k in _CREDENTIALS if catalog.get(k) and not own.get(k)})


def replica_url(server: Server, dsn: str, settings: Settings) -> str:
    """URL of a replica of *server*: its own *dsn*, with the database and the credentials of the server."""
    return make_conninfo(url_at(server, dsn, settings), target_session_attrs="any")


def url_at(server: Server, url: str, settings: Settings) -> str:
    """*url* with what it leaves out of the database and the credentials of *server*."""
    known, own = parsed(server_url(server, settings)), parsed(url)
    return make_conninfo(url, **{k: known[k] for k in (*_CREDENTIALS, "dbname") if known.get(k) and not own.get(k)})


def app_conninfo(server: Server, settings: Settings, *, replica: str | None = None) -> Secret:
    """How application code connects: as the least role, and with an empty path, so that unrouted names fail."""
    direct = not settings.pooled
    url = server_url(server, settings) if replica is None else replica_url(server, replica, settings)
    own = {"options": f"-c role={APP_ROLE} -c search_path= -c client_connection_check_interval=2s"} if direct else {}
    return conninfo(url, settings, **own)


def can_fail_over(server: Server, settings: Settings) -> bool:
    """Whether another host may take over from the primary of *server*, as far as its DSN and the map say."""
    return bool(server.replicas) or len(hosts_of(parsed(server_url(server, settings)))) > 1


def connect(
    server: Server, settings: Settings, *, cluster_id: UUID, replica: str | None = None, lineage: Lineage | None = None
) -> RoutedConnection:
    """A routed connection to *server* (or to the *replica* of it with that DSN), which was asked for its identity.

    Raises ServerDownError, WrongServerError, or PoolTimeoutError for one more than the budget allows.
    """
    lineage = lineage or Lineage()
    check_budget(server, settings, replica=replica)
    info = app_conninfo(server, settings, replica=replica)
    if replica is None:
        info = way_to(info, server, cluster_id=cluster_id, lineage=lineage)
    try:
        connection = RoutedConnection.connect(info, autocommit=True, cursor_factory=RoutedCursor)
    except psycopg.OperationalError as exc:
        raise refused_options(server.name, exc) or down(server, exc) from exc
    try:
        _tune(connection, server, settings, replica=replica)
        _check(connection, server, cluster_id, connection.execute(IDENTITY).fetchone(), replica=replica, lineage=lineage)
    except BaseException as exc:
        connection.close()
        raise explained(server, exc) from exc
    return connection


async def connect_async(
    server: Server, settings: Settings, *, cluster_id: UUID, replica: str | None = None, lineage: Lineage | None = None
) -> AsyncRoutedConnection:
    """The same for asyncio."""
    lineage = lineage or Lineage()
    check_budget(server, settings, replica=replica)
    info = app_conninfo(server, settings, replica=replica)
    if replica is None and len(hosts_of(parsed(info))) > 1:
        info = await asyncio.to_thread(way_to, info, server, cluster_id=cluster_id, lineage=lineage)
    try:
        connection = await AsyncRoutedConnection.connect(info, autocommit=True, cursor_factory=AsyncRoutedCursor)
    except psycopg.OperationalError as exc:
        raise refused_options(server.name, exc) or down(server, exc) from exc
    try:
        _tune(connection, server, settings, replica=replica)
        row = await (await connection.execute(IDENTITY)).fetchone()
        _check(connection, server, cluster_id, row, replica=replica, lineage=lineage)
    except BaseException as exc:
        await connection.close()
        raise explained(server, exc) from exc
    return connection


def connect_admin(
    url: str, settings: Settings, *, name: str = "the catalog", autocommit: bool = True, watched: bool = False
) -> psycopg.Connection[Any]:
    """A plain connection with the rights of *url*, for the catalog and for operators' work on a server.

    *watched*: its backend notices within two seconds that this program was killed, and ends what it is at.
    """
    info = watched_conninfo(url, settings) if watched else conninfo(url, settings)
    return connect_as(info, settings, name=name, autocommit=autocommit, watched=watched)


def watched_conninfo(url: str, settings: Settings) -> Secret:
    """As ``conninfo``, for ``connect_as`` with *watched*: for whoever makes several connections of one kind."""
    return conninfo(url, settings, **({"options": _WATCH_OPTION} if _watched_at_start(url, settings) else {}))


def connect_as(
    info: str, settings: Settings, *, name: str, autocommit: bool = True, watched: bool = False
) -> psycopg.Connection[Any]:
    """What ``connect_admin`` gives, by a connection string made before. Raises ServerDownError."""
    try:
        prepare = {"prepare_threshold": None} if settings.pooled else {}
        connection = psycopg.connect(info, autocommit=autocommit, **prepare)
        if watched and _WATCH_OPTION not in connection.info.options:
            connection.execute(_WATCH)
            if not autocommit:
                connection.commit()
        return connection
    except psycopg.OperationalError as exc:
        raise ServerDownError(f"{name} does not answer: {_first_line(exc)}; nothing was done") from exc


def _watched_at_start(url: str, settings: Settings) -> bool:
    return not settings.pooled and "options" not in parsed(url)


def connect_living(server: Server, settings: Settings, *, cluster_id: UUID, lineage: Lineage) -> psycopg.Connection[Any]:
    """As ``connect_admin``, to the living primary of *server*. Raises ServerDownError, WrongServerError."""
    info = way_to(conninfo(server_url(server, settings), settings), server, cluster_id=cluster_id, lineage=lineage)
    connection = connect_admin(info, settings, name=f"server {server.name!r}")
    try:
        row = connection.execute(IDENTITY).fetchone()
        check_identity(server, cluster_id, row)
        check_living(server, row and row[6], replica=False, lineage=lineage)
    except BaseException as exc:
        connection.close()
        raise explained(server, exc) from exc
    return connection


@contextmanager
def at(url: str, settings: Settings, *, name: str, then: str = "nothing was changed") -> Iterator[psycopg.Connection[Any]]:
    """An administrative connection to *name* for the block; what PostgreSQL says in it becomes an error of ours.

    *then* ends the message: what has become of the work, and what to do.
    """
    connection = connect_admin(url, settings, name=name)
    with said(name, then=then), connection:
        yield connection


@contextmanager
def said(name: str, *, then: str) -> Iterator[None]:
    """What PostgreSQL says in the block becomes an error of ours; as in ``at``."""
    try:
        yield
    except psycopg.OperationalError as exc:
        raise ServerDownError(f"{name} failed or went away: {_first_line(exc)}; {then}") from exc
    except psycopg.Error as exc:
        raise ServerError(f"{name} refused: {_first_line(exc)}; {then}") from exc


def down(server: Server, exc: BaseException) -> ServerDownError:
    """The error for a *server* that could not be reached."""
    return ServerDownError(f"server {server.name!r} does not answer: {_first_line(exc)}; nothing was sent")


_held: defaultdict[tuple[UUID, str | None], weakref.WeakValueDictionary[int, Any]] = defaultdict(weakref.WeakValueDictionary)
"""Connections of this process, by server and replica: the budget counts those of all pools together. (``valuerefs`` takes them
in one step; going through a WeakSet fails where another thread connects meanwhile.)
"""


def check_budget(server: Server, settings: Settings, *, replica: str | None = None) -> None:
    """Refuse one more connection to *server* (or to its *replica*) than the budget of this process allows."""
    found = (known() for known in _held[server.server_id, replica].valuerefs())
    held = sum(connection is not None and not connection.closed for connection in found)
    if held >= settings.connection_budget:
        raise PoolTimeoutError(
            f"this process holds {held} connections to server {server.name!r}, all its budget allows: nothing was sent. "
            "Close sessions sooner, or raise connection_budget (and max_connections)"
        )


def count_in(server: Server, connection: Any, *, replica: str | None = None) -> None:
    """Count *connection* in the budget until it is closed."""
    _held[server.server_id, replica][id(connection)] = connection


def _tune(
    connection: RoutedConnection | AsyncRoutedConnection, server: Server, settings: Settings, *, replica: str | None
) -> None:
    count_in(server, connection, replica=replica)
    connection.call_timeout_s = settings.call_timeout_s
    connection.pooled = settings.pooled
    connection.backend_pid = 0 if settings.pooled else connection.pgconn.backend_pid  # a pooler makes one up
    connection.prepare_threshold = None if settings.pooled else 1
    connection.prepared_max = settings.prepared_max


def _check(
    connection: RoutedConnection | AsyncRoutedConnection,
    server: Server,
    cluster_id: UUID,
    row: Row | None,
    *,
    replica: str | None,
    lineage: Lineage,
) -> None:
    """Whether this is the server, and the living primary of it (or a standby, for a *replica*)."""
    check_identity(server, cluster_id, row)
    check_standing(server.name, connection, row)
    connection.timeline, connection.life = row[6:] if row else (None, None)
    check_living(server, connection.timeline, replica=replica is not None, lineage=lineage)


def check_identity(server: Server, cluster_id: UUID, row: Row | None) -> None:
    """Raise WrongServerError unless *row* is the identity of *server* in this cluster."""
    if row is None or row[0] != cluster_id:
        raise WrongServerError(
            f"the database behind server {server.name!r} belongs to {'no cluster' if row is None else 'another cluster'}: "
            "it was not used. Correct the server's DSN"
        )
    if row[1] != server.server_id:
        raise WrongServerError(
            f"the database behind server {server.name!r} is another server of this cluster: it was not used. Correct its DSN"
        )


def explained(server: Server, exc: BaseException) -> BaseException:
    """*exc*, met while asking for the identity, as what it means."""
    if isinstance(exc, psycopg.errors.UndefinedTable | psycopg.errors.InvalidSchemaName | psycopg.errors.InsufficientPrivilege):
        return WrongServerError(
            f"the database behind server {server.name!r} holds no shardkit identity: it was not used. Correct the server's DSN"
        )
    if isinstance(exc, psycopg.OperationalError):
        return down(server, exc)
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


def known_rows(connection: psycopg.Connection[Any], query: LiteralString, values: Mapping[str, Any] | None = None) -> list[Any]:
    """Rows of a table that an older catalog does not have yet; none there. Outside a transaction only."""
    try:
        return connection.execute(query, values).fetchall()
    except psycopg.errors.UndefinedTable:
        return []


def listen(connection: psycopg.Connection[Any], channel: str) -> psycopg.Connection[Any]:
    """*connection*, listening on *channel*. Behind a pooler nothing would come, so the map is only asked for."""
    if is_pooled(connection):
        return connection
    connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
    return connection


def announce(connection: psycopg.Connection[Any], name: str) -> None:
    """Call this session *name* in pg_stat_activity; not behind a pooler, where the backend is everybody's."""
    ask = "SELECT set_config('application_name', %s, false) WHERE pg_backend_pid() = %s"
    connection.execute(ask, (name, connection.info.backend_pid))


def wait_for_notice(connection: psycopg.Connection[Any], *, timeout_s: float, unless: threading.Event) -> None:
    """Return when a notification came, *timeout_s* has passed, or *unless* is set (looked at every quarter of a second)."""
    deadline = time.monotonic() + timeout_s
    while not unless.is_set() and (left := deadline - time.monotonic()) > 0:
        if any(True for _ in connection.notifies(timeout=min(left, 0.25), stop_after=1)):
            return


def is_closed(server: Server, settings: Settings, *, cluster_id: UUID, schema: str, lineage: Lineage) -> bool:
    """Whether *schema* is gone from *server*. Asked on a connection of its own, from whatever thread met the fence."""
    with connect(server, settings, cluster_id=cluster_id, lineage=lineage) as connection:
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


@contextmanager
def lost(connection: psycopg.Connection[Any], name: str) -> Iterator[None]:
    """Inside the block, losing *connection* to *name* raises ServerDownError; whether the last statement was done is open."""
    try:
        yield
    except psycopg.OperationalError as exc:
        if not connection.closed:
            raise
        raise ServerDownError(f"the connection to {name} broke: {_first_line(exc)}", outcome=Outcome.UNKNOWN) from exc
