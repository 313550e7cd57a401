"""A local cluster of real servers: finds their programs, makes their data, supervises them."""

from __future__ import annotations

from shardkit.local.cluster import LocalCluster
from shardkit.local.state import LocalServer
from shardkit.local.up import run_local

__all__ = ["LocalCluster", "LocalServer", "run_local"]
