"""Schemas: the catalog's own, and those of the shards, which the program's models or Alembic revisions define.

For revisions and for a tree's ``env.py``: ``run_env`` and ``protect``.
"""

from __future__ import annotations

from typing import Any

__all__ = ["protect", "run_env"]

_HOMES = {"run_env": "shardkit.schema.env", "protect": "shardkit.schema.autogenerate"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(name)
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
