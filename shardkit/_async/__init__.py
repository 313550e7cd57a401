"""What waits and is needed by applications, written once for asyncio; ``_sync`` is generated from it."""

from __future__ import annotations
