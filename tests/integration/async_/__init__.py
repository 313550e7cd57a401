"""Tests of sessions, written once for asyncio; ``sync_`` is generated from it."""

from __future__ import annotations
