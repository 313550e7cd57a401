"""From empty databases to a cluster: catalog, identities, shards. Can be killed at any moment and run again.

The cluster's row is written first and marked ready last: a program never sees half a cluster, and a second run of the same
``init`` goes on where the first one was stopped.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from uuid import UUID, uuid4, uuid5

from shardkit.catalog.changes import begun_placements, create_cluster, make_ready, unfinished
from shardkit.core.hashing import TENANT_TYPES, TenantType, check_shard_count
from shardkit.core.names import check_server_name, schema_name
from shardkit.core.placement import place
from shardkit.core.shardmap import Server, ShardMap
from shardkit.db.connect import at, public_dsn
from shardkit.db.servers import identity, prepare_server, survey
from shardkit.db.shards import create_shard
from shardkit.errors import ClusterExistsError, SettingsError
from shardkit.schema.blueprint import Blueprint
from shardkit.schema.trees import upgrade_catalog
from shardkit.settings import Secret, Settings

CONNECTIONS_PER_SERVER = 2  # measured: 1.8 times as fast as one on two cores, and more bring nothing
# No template database: copying one takes a third of the time (`benchmarks local`), but it must hold the schemas of just this
# server, so that making it is the whole work itself.
AGAIN = "what is there stays: run the same init again and it goes on"
Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class InitPlan:
    """What an init would make, all of it checked. ``resumed``: the same init was begun before and is gone on with."""

    cluster_id: UUID
    shard_count: int
    tenant_type: TenantType
    servers: Mapping[str, Server]
    placements: Mapping[int, str]
    resumed: bool
    urls: Mapping[str, Secret] = field(repr=False)

    def shards_on(self, server: str) -> list[int]:
        """Numbers of the shards that *server* gets, ascending."""
        return sorted(s for s, name in self.placements.items() if name == server)


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
    plan = plan_init(settings, servers=servers, shard_count=shard_count, tenant_type=tenant_type, weights=weights)
    return carry_out(settings, plan, blueprint=blueprint, progress=progress)


def plan_init(
    settings: Settings,
    *,
    servers: Mapping[str, str],
    shard_count: int = 256,
    tenant_type: TenantType = "str",
    weights: Mapping[str, float] | None = None,
) -> InitPlan:
    """Everything that can be refused is refused here, and nothing is changed."""
    check_shard_count(shard_count)
    if tenant_type not in TENANT_TYPES:
        raise SettingsError(f"tenants are of type {' or '.join(TENANT_TYPES)}, not {tenant_type!r}")
    if not servers:
        raise SettingsError("a cluster needs at least one server; nothing was changed")
    if strangers := (weights or {}).keys() - servers.keys():
        raise SettingsError(f"a weight was given for {', '.join(sorted(strangers))}, which is no server; nothing was changed")
    shares = {name: (weights or {}).get(check_server_name(name), 1.0) for name in servers}
    placements = place(range(shard_count), shares)
    dsns = {name: public_dsn(url) for name, url in servers.items()}
    with at(settings.catalog_url, settings, name="the catalog") as catalog:
        marks = {survey(catalog, "the catalog"): "the catalog"}
        begun = unfinished(
            catalog, shard_count=shard_count, tenant_type=tenant_type, servers={n: (dsns[n], shares[n]) for n in servers}
        )
        placements = begun_placements(catalog) if begun else placements
        owners = {"the catalog": identity(catalog)}
    for name, url in servers.items():
        with at(url, settings, name=f"server {name!r}") as connection:
            mark = survey(connection, f"server {name!r}")
            owners[f"server {name!r}"] = identity(connection)
        if mark in marks:
            raise SettingsError(
                f"server {name!r} and {marks[mark]} are the same database; nothing was changed. Give each a database of its own"
            )
        marks[mark] = f"server {name!r}"
    for place_name, owner in owners.items():
        if owner is not None and owner[0] != begun:
            raise ClusterExistsError(
                f"the database of {place_name} belongs to another cluster ({owner[0]}); nothing was changed. "
                "Give an empty database"
            )
    cluster_id = begun or uuid4()
    described = {n: Server(n, dsns[n], uuid5(cluster_id, n), shares[n]) for n in servers}
    urls = {n: Secret(url) for n, url in servers.items()}
    return InitPlan(cluster_id, shard_count, tenant_type, described, placements, begun is not None, urls)


def carry_out(
    settings: Settings, plan: InitPlan, *, blueprint: Blueprint | None = None, progress: Progress = lambda _done: None
) -> ShardMap:
    """Do what *plan* says, or what is left of it, and give the cluster's map."""
    upgrade_catalog(settings)
    with at(settings.catalog_url, settings, name="the catalog", then=AGAIN) as catalog:
        create_cluster(
            catalog,
            cluster_id=plan.cluster_id,
            shard_count=plan.shard_count,
            tenant_type=plan.tenant_type,
            servers=plan.servers,
            placements=plan.placements,
        )
        prepare_server(catalog, cluster_id=plan.cluster_id, server_id=plan.cluster_id)
        for name, url in plan.urls.items():
            with at(url, settings, name=f"server {name!r}", then=AGAIN) as connection:
                prepare_server(connection, cluster_id=plan.cluster_id, server_id=plan.servers[name].server_id)
        _create_all(settings, plan, blueprint or Blueprint(), progress)
        return make_ready(catalog)


def _create_all(settings: Settings, plan: InitPlan, blueprint: Blueprint, progress: Progress) -> None:
    stop = threading.Event()

    def work(name: str, shards: list[int]) -> None:
        with at(plan.urls[name], settings, name=f"server {name!r}", then=AGAIN) as connection:
            for shard in shards:
                if stop.is_set():
                    return
                create_shard(connection, shard, schema_name(shard, 1), blueprint.sql)
                progress(1)

    jobs = [(n, plan.shards_on(n)[part::CONNECTIONS_PER_SERVER]) for n in plan.urls for part in range(CONNECTIONS_PER_SERVER)]
    with ThreadPoolExecutor(len(jobs)) as pool:
        running = [pool.submit(work, name, shards) for name, shards in jobs]
        try:
            for result in running:
                result.result()
        finally:  # an error, or Ctrl-C: the others end with the shard they are at
            stop.set()
