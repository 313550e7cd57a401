"""Alembic's entry to the shards' tree; ``shardkit migrate`` takes every shard through it."""

from __future__ import annotations

from photos.models import Base
from shardkit.schema import run_env

run_env(Base.metadata)
