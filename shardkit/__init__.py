"""Sharded multi-tenant data access for PostgreSQL and SQLAlchemy."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shardkit._async.kit import AsyncShardKit
    from shardkit._sync.kit import ShardKit
    from shardkit.core.shardmap import Route, ShardMap
    from shardkit.errors import Outcome, ShardKitError
    from shardkit.local import LocalCluster, run_local
    from shardkit.orm.base import ShardedBase
    from shardkit.orm.cached import Cached, ListKey
    from shardkit.orm.cachestats import CacheStats
    from shardkit.orm.keys import ShardKey
    from shardkit.orm.session import AsyncRoutedSession, RoutedSession
    from shardkit.orm.tenancy import TenantScoped
    from shardkit.orm.unique import GlobalUnique
    from shardkit.settings import Settings

__version__ = "0.1.0"

_HOMES = {
    "AsyncRoutedSession": "orm.session",
    "AsyncShardKit": "_async.kit",
    "CacheStats": "orm.cachestats",
    "Cached": "orm.cached",
    "GlobalUnique": "orm.unique",
    "ListKey": "orm.cached",
    "LocalCluster": "local",
    "Outcome": "errors",
    "Route": "core.shardmap",
    "RoutedSession": "orm.session",
    "Settings": "settings",
    "ShardKey": "orm.keys",
    "ShardKit": "_sync.kit",
    "ShardKitError": "errors",
    "ShardMap": "core.shardmap",
    "ShardedBase": "orm.base",
    "TenantScoped": "orm.tenancy",
    "run_local": "local",
}

__all__ = [
    "AsyncRoutedSession",
    "AsyncShardKit",
    "CacheStats",
    "Cached",
    "GlobalUnique",
    "ListKey",
    "LocalCluster",
    "Outcome",
    "Route",
    "RoutedSession",
    "Settings",
    "ShardKey",
    "ShardKit",
    "ShardKitError",
    "ShardMap",
    "ShardedBase",
    "TenantScoped",
    "run_local",
]


def __getattr__(name: str) -> Any:
    """Public names are loaded when first used: the command line needs few of them."""
    if name not in _HOMES:
        raise AttributeError(f"module 'shardkit' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"shardkit.{_HOMES[name]}"), name)
    return value
