"""Drops what is stored of one tenant under a shard that it has left, or comes back to after others wrote for it elsewhere."""

from __future__ import annotations

import re
from typing import Final

from shardkit._async.cache import Store
from shardkit.core.cacheproto import name_part, tag
from shardkit.core.hashing import TenantKey

EVERYTHING: Final = 1 << 40
AT_ONCE: Final = 500


async def forget(store: Store, cluster: str, tenant: TenantKey, *, shard: int) -> int:
    """How many keys were dropped. UnreachableError where Redis cannot be asked."""
    at = tag(cluster, shard)
    owner = re.sub(r"([*?\[\]^\\-])", r"\\\1", name_part(str(tenant)))
    keys = await store.scan(f"sk:{{{at}}}:*:*:{owner}:*", limit=EVERYTHING)
    for start in range(0, len(keys), AT_ONCE):
        some = keys[start : start + AT_ONCE]
        await store._run(at, lambda _, some=some: ("UNLINK", *some))  # type: ignore[misc]  # a lambda with a default
    return len(keys)
