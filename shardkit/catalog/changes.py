"""Changes to the catalog, each one transaction, by compare-and-set on the version of the map it was planned on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from shardkit.catalog.rows import SQL, load_map
from shardkit.core.hashing import HASH_VERSION, TenantKey, TenantType
from shardkit.core.shardmap import Server, ServerState, ShardMap
from shardkit.db.connect import instead_of, public_dsn, transaction
from shardkit.errors import CatalogError, ClusterExistsError, MapConflictError, UnknownServerError, UnknownShardError


def create_cluster(
    connection: Any,
    *,
    cluster_id: UUID,
    shard_count: int,
    tenant_type: TenantType,
    servers: Mapping[str, Server],
    placements: Mapping[int, str],
) -> None:
    """Write a new cluster's first map, all shards at epoch 1; it counts once ``make_ready`` has said so.

    Does nothing for the cluster that is there, unfinished, with the same id; raises ClusterExistsError for any other.
    """
    row = connection.execute(SQL["cluster"]).fetchone()
    if row is not None and row[0] == cluster_id:
        return
    exists = ClusterExistsError("this catalog already holds a cluster; nothing was changed")
    with instead_of({"cluster_pkey": exists}), transaction(connection):
        connection.execute(
            SQL["create_cluster"],
            {
                "cluster_id": cluster_id,
                "shard_count": shard_count,
                "tenant_type": tenant_type,
                "hash_version": HASH_VERSION,
            },
        )
        for server in servers.values():
            _put_server(connection, server, version=1)
        with connection.cursor() as cursor:
            cursor.executemany(
                SQL["put_placement"],
                [{"shard": s, "server": n, "epoch": 1, "parent": None, "version": 1} for s, n in placements.items()],
            )


def unfinished(
    connection: Any, *, shard_count: int, tenant_type: TenantType, servers: Mapping[str, tuple[str, float]]
) -> UUID | None:
    """Id of a cluster whose init was stopped, if it was the same init (*servers*: DSN and weight by name); None for a new one.

    Raises ClusterExistsError for a cluster that is ready, or was begun in another way.
    """
    if not connection.execute(SQL["has_cluster"]).fetchone()[0]:
        return None
    row = connection.execute(SQL["cluster"]).fetchone()
    if row is None:
        return None
    found: UUID
    found, count, kind, _, _, ready = row
    if ready:
        raise ClusterExistsError("this catalog already holds a cluster; nothing was changed. `shardkit status` shows it")
    begun = {name: (dsn, weight) for name, dsn, _, weight, *_ in connection.execute(SQL["servers"])}
    if (count, kind, begun) != (shard_count, tenant_type, dict(servers)):
        described = ", ".join(f"{name} ({dsn}, weight {weight:g})" for name, (dsn, weight) in begun.items())
        raise ClusterExistsError(
            f"an init with {count} shards, {kind} tenants and the servers {described} was begun here and not finished; "
            "nothing was changed. Run it again with these, or give an empty catalog database"
        )
    return found


def begun_placements(connection: Any) -> dict[int, str]:
    """Server by shard of a cluster whose init was stopped."""
    return {shard: server for shard, server, *_ in connection.execute(SQL["placements_since"], {"version": 0})}


def make_ready(connection: Any) -> ShardMap:
    """End an init: from now on programs may use the cluster."""
    connection.execute(SQL["make_ready"])
    return load_map(connection)


@contextmanager
def change(connection: Any, *, expected: int | None) -> Iterator[int]:
    """One change of the map, inside the block; gives the new version. *expected* None: it does not depend on the rest.

    Raises MapConflictError, and changes nothing, if the map is no longer at version *expected*.
    """
    with transaction(connection):
        row = (
            connection.execute(SQL["raise_version"])
            if expected is None
            else connection.execute(SQL["lock_version"], {"expected": expected})
        ).fetchone()
        if row is None:
            raise MapConflictError(
                f"the shard map is no longer at version {expected}: somebody changed it in between; nothing was changed"
            )
        yield row[0]
        connection.execute(SQL["notify"], {"version": row[0]})


def add_server(connection: Any, server: Server) -> None:
    """Add a server, with no shard on it."""
    known = CatalogError(f"a server {server.name!r} (or the same database) is in the map already; nothing was changed")
    with (
        instead_of({"servers_pkey": known, "servers_server_id_key": known}),
        change(connection, expected=None) as version,
    ):
        _put_server(connection, server, version=version)


def change_server(
    connection: Any, name: str, *, dsn: str | None = None, weight: float | None = None, state: ServerState | None = None
) -> None:
    """Change what is given of a server. Raises UnknownServerError."""
    values = {"name": name, "dsn": dsn, "weight": weight, "state": state and state.value}
    with change(connection, expected=None) as version:
        if connection.execute(SQL["change_server"], {**values, "version": version}).rowcount != 1:
            raise UnknownServerError(f"server {name!r} is not in the map; nothing was changed")


def set_replicas(connection: Any, name: str, replicas: Sequence[str], *, expected: int | None = None) -> None:
    """Say where the replicas of a server are: DSNs without a password (credentials are those of the server itself).

    Raises UnknownServerError, MapConflictError; nothing is changed then.
    """
    with change(connection, expected=expected) as version:
        values = {"name": name, "replicas": [public_dsn(url) for url in replicas], "version": version}
        if connection.execute(SQL["set_replicas"], values).rowcount != 1:
            raise UnknownServerError(f"server {name!r} is not in the map; nothing was changed")


def raise_timeline(connection: Any, name: str, timeline: int) -> None:
    """Remember that server *name* was seen on *timeline*, so that no program takes an old primary for it."""
    with change(connection, expected=None) as version:
        connection.execute(SQL["raise_timeline"], {"name": name, "timeline": timeline, "version": version})


def remove_server(connection: Any, name: str, *, and_then: Callable[[], None] = lambda: None) -> None:
    """Remove a server that holds no shard. *and_then* is run before COMMIT, while no shard can be placed there."""
    full = CatalogError(f"server {name!r} still holds shards: drain it first; nothing was changed")
    with instead_of({"placements_server_fkey": full}), change(connection, expected=None):
        connection.execute(SQL["remove_server"], {"name": name})
        and_then()


def pin(connection: Any, tenant: TenantKey, shard: int | None) -> None:
    """Send *tenant* to *shard* against its hash, or take the pin away (None). It moves no rows."""
    unknown = UnknownShardError(f"shard {shard!r} is not in the map: the tenant was not pinned")
    with instead_of({"pins_shard_fkey": unknown}), change(connection, expected=None) as version:
        connection.execute(SQL["put_pin"], {"tenant": str(tenant), "shard": shard, "version": version})


def flip(connection: Any, shard: int, *, server: str, expected_epoch: int) -> int:
    """Send *shard* to *server* at the epoch after *expected_epoch*, and give that epoch.

    Raises MapConflictError, and changes nothing, if the shard is no longer at the expected one.
    """
    with change(connection, expected=None) as version:
        values = {"server": server, "epoch": expected_epoch + 1, "expected_epoch": expected_epoch, "shard": shard}
        if connection.execute(SQL["flip_placement"], {**values, "version": version}).rowcount != 1:
            raise MapConflictError(f"shard {shard} is no longer at epoch {expected_epoch}; nothing was changed")
    return expected_epoch + 1


def _put_server(connection: Any, server: Server, *, version: int) -> None:
    connection.execute(
        SQL["put_server"],
        {
            "name": server.name,
            "dsn": server.dsn,
            "server_id": server.server_id,
            "weight": server.weight,
            "state": server.state.value,
            "replicas": list(server.replicas),
            "version": version,
        },
    )
