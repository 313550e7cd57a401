"""What traces, tags and logs say of the current unit of work: its tenant as a digest, its shard, server and epoch."""

from __future__ import annotations

from shardkit._async.kit import AsyncShardKit
from shardkit._sync.kit import ShardKit
from shardkit.core.hashing import tenant_digest
from shardkit.core.shardmap import Route
from shardkit.errors import ShardKitError

Kit = ShardKit | AsyncShardKit
Fields = dict[str, str | int]


def of_route(route: Route, *, secret: str = "") -> Fields:
    """Fields of a route; a tenant is never named."""
    found: Fields = {"shard": route.shard, "server": route.server, "epoch": route.epoch}
    return found if route.tenant is None else {"tenant": tenant_digest(route.tenant, secret=secret), **found}


def of_current(kit: Kit, *, secret: str = "") -> Fields:
    """Fields of the block of ``kit.tenant`` one stands in; none outside of one."""
    tenant = kit.current_tenant
    if tenant is None:
        return {}
    try:
        return {**of_route(kit.locate(tenant), secret=secret), "map_version": kit.map.version}
    except ShardKitError:  # whoever logs must not fail for it
        return {}


def of_error(error: BaseException | None) -> Fields:
    """Fields of one of our errors: its code, what became of the work, whether it may be tried again."""
    if not isinstance(error, ShardKitError):
        return {}
    return {"error_code": error.code, "outcome": error.outcome.value, "retryable": int(error.retryable)}
