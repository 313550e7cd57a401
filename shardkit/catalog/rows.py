"""From the catalog's rows to a ShardMap: whole, or what changed since the map one already has."""

from __future__ import annotations

from typing import Any

from shardkit.core.hashing import TenantKey
from shardkit.core.shardmap import Placement, Server, ServerState, ShardMap
from shardkit.db.connect import transaction
from shardkit.errors import NotInitializedError, StaleMapError
from shardkit.sql import statements

SQL = statements("catalog")


def load_map(connection: Any, known: ShardMap | None = None) -> ShardMap:
    """The catalog's map; *known* itself if it is still the newest, and what is unchanged is taken from it.

    Raises NotInitializedError for an empty catalog, StaleMapError where the catalog is older than *known* or of another
    cluster (it was restored from a backup, or the URL leads elsewhere).
    """
    with transaction(connection, isolation="REPEATABLE READ"):
        if not connection.execute(SQL["has_cluster"]).fetchone()[0]:
            raise NotInitializedError
        row = connection.execute(SQL["cluster"]).fetchone()
        if row is None:
            raise NotInitializedError
        cluster_id, shard_count, tenant_type, hash_version, version, ready = row
        if not ready:
            raise NotInitializedError("`shardkit init` was begun here and not finished: run it again")
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
        since = {"version": known.version if known else 0}
        servers = {row[0]: _server(*row) for row in connection.execute(SQL["servers"])}
        placements = dict(known.placements) if known else {}
        placements.update((shard, Placement(*place)) for shard, *place in connection.execute(SQL["placements_since"], since))
        changed = connection.execute(SQL["pins_since"], since).fetchall()
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
        servers=servers,
        placements=placements,
        pins=pins,
    )


def newest_map(connection: Any, known: ShardMap) -> ShardMap:
    """The catalog's map; one short question where *known* still is."""
    row = connection.execute(SQL["map_version"]).fetchone()
    return known if row is not None and row[0] == known.version else load_map(connection, known)


def pinned_tenant(text: str, tenant_type: str) -> TenantKey:
    """A tenant key as the catalog stores it, back in its type."""
    return int(text) if tenant_type == "int" else text


def _server(name: str, dsn: str, server_id: Any, weight: float, state: str, replicas: list[str], timeline: int) -> Server:
    return Server(name, dsn, server_id, weight, ServerState(state), tuple(replicas), timeline)
