"""Alembic's entry to the catalog tree."""

from __future__ import annotations

from shardkit.schema import run_env

run_env(catalog=True)
