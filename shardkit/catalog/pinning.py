"""Pins one tenant to a shard, and refuses where rows of it would be left behind: a pin moves no rows."""

from __future__ import annotations

from dataclasses import dataclass

from shardkit.catalog.changes import pin
from shardkit.catalog.overview import current_map, opened
from shardkit.core.hashing import TenantKey, shard_of, tenant_from_text
from shardkit.core.shardmap import Route
from shardkit.db.connect import at, server_url
from shardkit.db.servers import tables_with_rows
from shardkit.settings import Settings


@dataclass(frozen=True, slots=True)
class PinPlan:
    """A tenant's way ``now`` and ``then``; ``shard`` None takes a pin away. ``tables`` of its shard now hold rows of it."""

    tenant: TenantKey
    now: Route
    then: Route
    shard: int | None
    there: bool
    tables: tuple[str, ...]


def plan_pin(settings: Settings, tenant: str, *, shard: int | None) -> PinPlan:
    """What pinning *tenant* (as text) to *shard*, or taking its pin away, would do. Nothing is changed.

    Raises TenantKeyError, UnknownShardError, ServerDownError.
    """
    shardmap = current_map(settings)
    key = tenant_from_text(tenant, shardmap.tenant_type)
    now = shardmap.locate(key)
    hashed = shard_of(key, tenant_type=shardmap.tenant_type, shard_count=shardmap.shard_count)
    then = shardmap.route(hashed if shard is None else shard, key)
    tables: list[str] = []
    if now.shard != then.shard:
        with at(server_url(shardmap.server(now.server), settings), settings, name=f"server {now.server!r}") as connection:
            tables = tables_with_rows(connection, schema=now.schema, tenant=key)
    return PinPlan(key, now, then, shard, shardmap.pins.get(key) == shard, tuple(tables))


def carry_out(settings: Settings, plan: PinPlan) -> None:
    """Change the map."""
    with opened(settings) as catalog:
        pin(catalog, plan.tenant, plan.shard)
