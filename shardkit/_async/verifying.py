"""Looks whether the cache keeps its promise: samples what is stored and compares it with PostgreSQL.

A stored row is wrong only if it was there both before and after PostgreSQL gave another one: a writer replaces it by a
marker before its COMMIT.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from shardkit._async.cache import Store
from shardkit.core.cacheproto import tag
from shardkit.orm.cached import Entity
from shardkit.orm.cacheloads import loaded, rows_statement
from shardkit.orm.cachescope import owner_of

KEPT_BY = frozenset({"allkeys-lfu", "noeviction"})


@dataclass(frozen=True, slots=True)
class Verified:
    """``checked`` rows were compared, ``changing`` ones were replaced meanwhile, ``stale`` names those that are wrong."""

    checked: int
    changing: int
    stale: tuple[str, ...]


async def verify(store: Store, entity: Entity, cluster: str, session: Callable[..., Any], *, sample: int) -> Verified:
    """Of up to *sample* rows stored by primary key. UnreachableError where Redis cannot be asked."""
    checked = changing = 0
    stale = []
    for key in await store.scan(f"sk:{{{cluster}.*}}:{entity.table.name}::*", limit=sample):
        whole = key.decode()
        shard, name = int(whole[4:].partition("}")[0].partition(".")[2]), whole.split(":", 2)[2]
        at = tag(cluster, shard)
        (raw,) = await store.fetch(at, [name])
        row = entity.codec.decode(raw) if raw is not None else None
        if row is None:
            continue
        values = dict(zip(entity.attributes, row, strict=True))
        keys = tuple(values[attribute] for attribute in entity.primary.attributes)
        owner = None if entity.tenant is None else values[entity.key_attributes[entity.tenant]]
        async with session(None, shard=shard, read_only=True) as there:
            connection = await there.connection()
            parameters = {"keys": [keys[0] if len(keys) == 1 else keys], **owner_of(entity, owner)}
            found = loaded((await connection.execute(rows_statement(entity), parameters)).all(), absent_at=entity.key_places[0])
        (again,) = await store.fetch(at, [name])
        checked += 1
        if again != raw:
            changing += 1
        elif not found.rows or entity.codec.loaded(found.rows[0]) != row:
            stale.append(name)
    return Verified(checked, changing, tuple(stale))


async def servers(store: Store) -> dict[str, Any]:
    """Memory and eviction of each server, with warnings."""
    about, warnings = [], []
    for info in await store.info():
        policy = info.get("maxmemory_policy", "unknown")
        version, memory = info.get("valkey_version") or info.get("redis_version"), info.get("used_memory_human")
        found, missed = (int(info.get(f"keyspace_{what}", 0)) for what in ("hits", "misses"))
        about.append(
            {
                "version": version,
                "memory": memory,
                "policy": policy,
                "evicted": int(info.get("evicted_keys", 0)),
                "found": found,
                "asked": found + missed,
            }
        )
        if info.get("maxmemory", "0") != "0" and policy not in KEPT_BY:
            warnings.append(
                f"maxmemory-policy {policy} may evict the marker of a running transaction; then a "
                "row can be stale until its time to live ends: use allkeys-lfu"
            )
        elif policy == "noeviction" and info.get("maxmemory", "0") != "0":
            warnings.append("maxmemory-policy noeviction: when memory is full no marker can be placed; use allkeys-lfu")
    return {"servers": about, "warnings": warnings}
