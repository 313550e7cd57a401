"""Alembic's entry to the shard tree."""

from __future__ import annotations

from shardkit.schema import run_env

run_env()
