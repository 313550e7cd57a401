"""Schemas: the catalog's own, and those of the shards, which the program's models or Alembic revisions define."""

from __future__ import annotations

from shardkit.schema.trees import run_env

__all__ = ["run_env"]
