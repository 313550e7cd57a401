"""From the catalog's rows to a ShardMap: whole, or what changed since the map one already has."""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

from shardkit.core.hashing import TenantKey
from shardkit.core.shardmap import Placement, Server, ServerState, ShardMap
from shardkit.db.connect import transaction
from shardkit.errors import NotInitializedError, StaleMapError
from shardkit.sql import statements

SQL = statements("catalog")
NO_TABLE: Final = ("42P01", "3F000")


def load_map(connection: Any, known: ShardMap | None = None) -> ShardMap:
    """The catalog's map; *known* itself if it is still the newest, and what is unchanged is taken from it.

    Raises NotInitializedError for an empty catalog, StaleMapError where the catalog is older than *known* or of another
    cluster (it was restored from a backup, or the URL leads elsewhere).
    """
    if known is not None:
        head, servers, places, changed = _news(connection, known.version)
    else:
        with transaction(connection, isolation="REPEATABLE READ"):
            head, servers, places, changed = _whole(connection)
    cluster_id, shard_count, tenant_type, hash_version, version = head
    if known is not None:
        if known.cluster_id != cluster_id:
            raise StaleMapError("the catalog now belongs to another cluster than the map in use: its map was refused")
        if version == known.version:
            return known
        if version < known.version:
            raise StaleMapError(
                f"the catalog's map has version {version}, older than {known.version} in use (was it restored from a "
                "backup?): it was refused"
            )
    placements = dict(known.placements) if known else {}
    placements.update((shard, Placement(*place)) for shard, *place in places)
    pins = known.pins if known else {}
    if changed:
        news = {pinned_tenant(tenant, tenant_type): shard for tenant, shard in changed}
        pins = {t: s for t, s in {**pins, **news}.items() if s is not None}
    return ShardMap(
        cluster_id=cluster_id,
        version=version,
        shard_count=shard_count,
        tenant_type=tenant_type,
        hash_version=hash_version,
        servers={row[0]: _server(*row) for row in servers},
        placements=placements,
        pins=pins,
    )


def _whole(connection: Any) -> tuple[Any, Any, Any, Any]:
    """The cluster's row and all others."""
    if not connection.execute(SQL["has_cluster"]).fetchone()[0]:
        raise NotInitializedError
    head = _ready(connection.execute(SQL["cluster"]).fetchone())
    servers = connection.execute(SQL["servers"]).fetchall()
    since = {"version": 0}
    places, pins = (connection.execute(SQL[name], since).fetchall() for name in ("placements_since", "pins_since"))
    return head, servers, places, pins


def _news(connection: Any, version: int) -> tuple[Any, Any, Any, Any]:
    """The same after *version*, in one question: whoever met a fence waits for the answer."""
    try:
        row = connection.execute(SQL["news"], {"version": version}, prepare=True).fetchone()
    except Exception as exc:
        if getattr(exc, "sqlstate", None) in NO_TABLE:
            raise NotInitializedError from exc
        raise
    *head, servers, places, pins = row or (None, None, None, None)
    found = [(name, dsn, UUID(server_id), *rest) for name, dsn, server_id, *rest in servers or ()]
    return _ready(head if row else None), found, places or (), pins or ()


def _ready(row: Any) -> Any:
    if row is None:
        raise NotInitializedError
    *head, ready = row
    if not ready:
        raise NotInitializedError("`shardkit init` was begun here and not finished: run it again")
    return head


def newest_map(connection: Any, known: ShardMap) -> ShardMap:
    """The catalog's map; one short question where *known* still is."""
    row = connection.execute(SQL["map_version"]).fetchone()
    return known if row is not None and row[0] == known.version else load_map(connection, known)


def pinned_tenant(text: str, tenant_type: str) -> TenantKey:
    """A tenant key as the catalog stores it, back in its type."""
    return int(text) if tenant_type == "int" else text


def _server(name: str, dsn: str, server_id: Any, weight: float, state: str, replicas: list[str], timeline: int) -> Server:
    return Server(name, dsn, server_id, float(weight), ServerState(state), tuple(replicas), timeline)
