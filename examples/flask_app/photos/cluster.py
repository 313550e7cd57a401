"""From empty databases to a cluster for this service: every shard as the revisions in ``migrations`` make it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from shardkit import Settings
from shardkit.schema.blueprint import from_tree
from shardkit.schema.bootstrap import initialize

TREE = Path(__file__).parents[1] / "migrations"
SHARDS = 64


def make_cluster(settings: Settings, servers: Mapping[str, str], *, shards: int = SHARDS) -> None:
    """Make the shards on *servers*, empty databases by name. Raises what ``shardkit init`` raises."""
    initialize(settings, servers=servers, shard_count=shards, blueprint=from_tree(TREE))
