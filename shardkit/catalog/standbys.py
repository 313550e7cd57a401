"""Replicas of a server join and leave: looked at before they join, and compared with their primary when asked for."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from shardkit.catalog.changes import set_replicas
from shardkit.catalog.overview import current_map, opened
from shardkit.core.lag import Position, lsn_number
from shardkit.core.shardmap import Server, ShardMap
from shardkit.db.connect import at, public_dsn, replica_url, server_url
from shardkit.db.servers import identity
from shardkit.errors import CatalogError, ServerError, ShardKitError, WrongServerError
from shardkit.settings import Settings

_PRIMARY: Final = "SELECT left(pg_walfile_name(pg_current_wal_insert_lsn()), 8), pg_current_wal_insert_lsn()::text"
_REPLICA: Final = "SELECT timeline, lsn::text FROM shardkit.replica_position()"
_AT_ONCE: Final = 16


@dataclass(frozen=True, slots=True)
class Change:
    """The replicas a server has after a change, planned on a map of ``version``; ``needed``: they are others than now."""

    server: Server
    dsn: str
    replicas: tuple[str, ...]
    version: int
    needed: bool


@dataclass(frozen=True, slots=True)
class Standby:
    """A replica as it is: the timeline it follows and how many bytes of log it has yet to replay, or its problem."""

    server: str
    dsn: str
    timeline: int | None = None
    lag_bytes: int | None = None
    problem: str | None = None


def plan_replica(settings: Settings, name: str, url: str) -> Change:
    """Check that the database behind *url* is a streaming standby of the server *name*; nothing is changed.

    Raises UnknownServerError, WrongServerError for another database or one that takes writes, ServerError.
    """
    shardmap = current_map(settings)
    server, dsn = shardmap.server(name), public_dsn(url)
    _position(settings, shardmap, server, dsn)
    return _planned(shardmap, server, dsn, [*(d for d in server.replicas if d != dsn), dsn])


def plan_without(settings: Settings, name: str, url: str) -> Change:
    """The server *name* without its replica at *url*, which need not answer. Raises UnknownServerError, CatalogError."""
    shardmap = current_map(settings)
    server, dsn = shardmap.server(name), public_dsn(url)
    if dsn not in server.replicas:
        known = ", ".join(repr(d) for d in server.replicas) or "none"
        raise CatalogError(f"server {name!r} has no replica at {dsn!r} (it has: {known}); nothing was changed")
    return _planned(shardmap, server, dsn, [d for d in server.replicas if d != dsn])


def carry_out(settings: Settings, change: Change) -> None:
    """Write *change* into the catalog. Raises MapConflictError where the map changed in between."""
    with opened(settings) as catalog:
        set_replicas(catalog, change.server.name, change.replicas, expected=change.version)


def standbys(settings: Settings) -> list[Standby]:
    """All replicas of the map, asked at the same time."""
    shardmap = current_map(settings)
    asked = [(server, dsn) for server in shardmap.servers.values() for dsn in server.replicas]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(lambda each: _look(settings, shardmap, *each), asked))


def _planned(shardmap: ShardMap, server: Server, dsn: str, replicas: Sequence[str]) -> Change:
    return Change(server, dsn, tuple(replicas), shardmap.version, needed=set(replicas) != set(server.replicas))


def _look(settings: Settings, shardmap: ShardMap, server: Server, dsn: str) -> Standby:
    try:
        there = _position(settings, shardmap, server, dsn)
    except ShardKitError as exc:
        return Standby(server.name, dsn, problem=exc.args[0].partition(";")[0])
    try:
        with at(server_url(server, settings), settings, name=f"server {server.name!r}") as connection:
            timeline, lsn = _one(connection, _PRIMARY)
    except ShardKitError as exc:
        return Standby(server.name, dsn, there.timeline, problem=exc.args[0].partition(";")[0])
    if int(timeline, 16) != there.timeline:
        problem = f"follows timeline {there.timeline}, and the primary is on timeline {int(timeline, 16)}"
        return Standby(server.name, dsn, there.timeline, problem=problem)
    return Standby(server.name, dsn, there.timeline, max(0, lsn_number(lsn) - there.lsn))


def _position(settings: Settings, shardmap: ShardMap, server: Server, dsn: str) -> Position:
    """How far the replica of *server* at *dsn* is."""
    name = f"the replica of server {server.name!r} at {dsn!r}"
    with at(replica_url(server, dsn, settings), settings, name=name) as connection:
        if identity(connection) != (shardmap.cluster_id, server.server_id):
            raise WrongServerError(f"{name} is not a copy of that server; nothing was changed. Give the address of a standby")
        if not _one(connection, "SELECT pg_is_in_recovery()")[0]:
            raise WrongServerError(f"{name} takes writes, so it is none; nothing was changed. Give the address of a standby")
        row = connection.execute(_REPLICA).fetchone()
    if row is None:
        raise ServerError(f"{name} receives nothing from its primary now; nothing was changed. See its log")
    return Position(row[0], lsn_number(row[1]))


def _one(connection: Any, query: Any) -> Any:
    return connection.execute(query).fetchone()
