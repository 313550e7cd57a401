# Generated from shardkit/_async/__init__.py by tests/generate_sync.py: change that file instead.
"""What waits and is needed by applications, generated from ``_async``."""

from __future__ import annotations
