"""How often Redis had what it was asked for, over all programs, as it counts itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from shardkit._sync.kit import ShardKit
from shardkit.settings import Settings


def cache_info(settings: Settings) -> Callable[[], Mapping[str, Any]] | None:
    """A function that asks; None where there is no Redis. Its kit is made when it is first asked."""
    if settings.redis_url is None:
        return None
    kits: list[ShardKit] = []

    def ask() -> Mapping[str, Any]:
        if not kits:
            kits.append(ShardKit(settings=settings))
        found = kits[0].cache.servers()
        servers = found["servers"]
        hits, asked = (sum(int(server[key]) for server in servers) for key in ("found", "asked"))
        misses, rate = asked - hits, hits / asked if asked else None
        memory = ", ".join(str(server.get("memory")) for server in servers)
        return {"hits": hits, "misses": misses, "hit_rate": rate, "memory": memory, "warnings": found["warnings"]}

    return ask
