"""The only place that builds or checks schema, server, role, lock and key names.

Identifiers never come from a request: shard schemas are made from two integers, everything else is a constant, so that
no quoting rule stands between a tenant and another tenant's rows.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from shardkit.errors import NameRejectedError

CATALOG_SCHEMA: Final = "shardkit_catalog"
SERVER_SCHEMA: Final = "shardkit"
GLOBAL_SCHEMA: Final = "shardkit_global"
CATALOG_SERVER: Final = "catalog"
APP_ROLE: Final = "shardkit_app"
OPERATOR_ROLE: Final = "shardkit_operator"
TENANT_SETTING: Final = "shardkit.tenant"
MAP_CHANNEL: Final = "shardkit_map"
ID_SEQUENCE: Final = "shardkit_ids"
ID_ORIGIN_SEQUENCE: Final = "shardkit_ids_origin"
CACHE_OUTBOX: Final = "shardkit_cache_outbox"
ID_LOCK_CLASS: Final = 0x73_6B_69_64  # "skid": first half of the advisory lock (class, shard)

_SCHEMA = re.compile(r"s(\d{4,5})_e(\d{1,9})")
_SERVER = re.compile(r"[a-z][a-z0-9_-]{0,30}")


class ShardSchema(NamedTuple):
    """What a shard schema's name says."""

    shard: int
    epoch: int


def schema_name(shard: int, epoch: int) -> str:
    """Schema of *shard* at *epoch*: ``s0291_e17``. The epoch in the name is the fence (DESIGN, law 1)."""
    if type(shard) is not int or type(epoch) is not int or not (0 <= shard <= 99_999 and 1 <= epoch <= 999_999_999):
        raise NameRejectedError(f"no schema name for shard {shard!r} at epoch {epoch!r}")
    return f"s{shard:04d}_e{epoch}"


def parse_schema(name: str) -> ShardSchema | None:
    """Shard and epoch of a schema name, or None where it is not one of ours."""
    found = _SCHEMA.fullmatch(name)
    if found is None:
        return None
    schema = ShardSchema(int(found[1]), int(found[2]))
    return schema if schema.epoch and schema_name(*schema) == name else None


def check_server_name(name: str) -> str:
    """*name* if it can name a server: 1 to 31 of ``a-z 0-9 _ -``, a letter first."""
    if name == CATALOG_SERVER:
        raise NameRejectedError(f"{name!r} is the name of the catalog's own database; choose another for a server")
    if not isinstance(name, str) or not _SERVER.fullmatch(name):
        raise NameRejectedError(f"{name!r} cannot name a server: use 1 to 31 of a-z, 0-9, '_' and '-', beginning with a letter")
    return name
