# Generated from tests/integration/async_/__init__.py by tests/generate_sync.py: change that file instead.
"""Tests of sessions, generated from ``async_``."""

from __future__ import annotations
