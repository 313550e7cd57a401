"""Sharded multi-tenant data access for PostgreSQL and SQLAlchemy."""

from __future__ import annotations

from shardkit._async.kit import AsyncShardKit
from shardkit._sync.kit import ShardKit
from shardkit.core.shardmap import Route, ShardMap
from shardkit.errors import Outcome, ShardKitError
from shardkit.local import LocalCluster, run_local
from shardkit.orm.base import ShardedBase
from shardkit.orm.keys import ShardKey
from shardkit.orm.session import AsyncRoutedSession, RoutedSession
from shardkit.orm.tenancy import TenantScoped
from shardkit.settings import Settings

__all__ = [
    "AsyncRoutedSession",
    "AsyncShardKit",
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
__version__ = "0.1.0"
