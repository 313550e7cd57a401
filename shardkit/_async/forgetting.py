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
    owner, before = name_part(str(tenant)), f"sk:{{{at}}}:"
    pattern = re.sub(r"([*?\[\]^\\-])", r"\\\1", owner)
    keys = [
        key
        for key in await store.scan(f"{before}*:*:{pattern}:*", limit=EVERYTHING)
        if key.decode().removeprefix(before).split(":")[2] == owner  # an asterisk takes colons too: others have keys like that
    ]
    for start in range(0, len(keys), AT_ONCE):
        some = keys[start : start + AT_ONCE]
        await store._run(at, lambda _, some=some: ("UNLINK", *some))  # type: ignore[misc]  # a lambda with a default
    return len(keys)
