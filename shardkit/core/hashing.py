"""Tenant key to shard number, the same in Python and in SQL.

``shard = h & (shard_count - 1)``, where h is the first 8 bytes of MD5(key), big-endian: with at most 8192 shards only
bytes 6 and 7 count. MD5, which guards nothing here, because PostgreSQL computes it with immutable built-ins that a
publication's row filter accepts. PostgreSQL hashes text as it stores it, so the database must be UTF8.
"""

from __future__ import annotations

import re
from hashlib import blake2b, md5
from typing import Final, Literal, TypeAlias

from shardkit.errors import SettingsError, TenantKeyError

TenantKey: TypeAlias = str | int
TenantType: TypeAlias = Literal["str", "int"]

HASH_VERSION: Final = 1
MAX_SHARDS: Final = 8192  # an id has 13 bits for its shard
MAX_KEY_BYTES: Final = 1024
TENANT_TYPES: Final = {"str": str, "int": int}
_WHOLE: Final = re.compile(r"-?[0-9]{1,19}")


def check_shard_count(count: int) -> int:
    """*count* if a cluster can have that many shards: a power of two from 1 to 8192. Raises SettingsError."""
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MAX_SHARDS or count & (count - 1):
        raise SettingsError(
            f"{count!r} shards are not possible: the number must be a power of two from 1 to {MAX_SHARDS}, "
            "and it is fixed at init"
        )
    return count


def key_bytes(tenant: object, tenant_type: TenantType) -> bytes:
    """The bytes that are hashed: a ``str`` as UTF-8, an ``int`` as its 8 bytes (signed, big-endian).

    Raises TenantKeyError for any other type (``bool`` and subclasses too), for an empty or overlong str, and for what
    PostgreSQL cannot store.
    """
    if type(tenant) is not TENANT_TYPES[tenant_type]:
        raise TenantKeyError(
            f"this cluster's tenants are of type {tenant_type}, not {type(tenant).__name__}: a key is never converted, "
            "because '42' and 42 live in different shards"
        )
    if isinstance(tenant, str):
        try:
            raw = tenant.encode()
        except UnicodeEncodeError:
            raise TenantKeyError("a tenant key must be valid Unicode text") from None
        if not raw:
            raise TenantKeyError("a tenant key must not be empty")
        if len(raw) > MAX_KEY_BYTES:
            raise TenantKeyError(f"a tenant key has at most {MAX_KEY_BYTES} bytes of UTF-8, this one has {len(raw)}")
        if b"\0" in raw:
            raise TenantKeyError("a tenant key must not contain a NUL character: PostgreSQL cannot store it")
        return raw
    assert isinstance(tenant, int)
    if not -(2**63) <= tenant < 2**63:
        raise TenantKeyError("an int tenant key must fit into 64 bits, signed")
    return tenant.to_bytes(8, "big", signed=True)


def tenant_from_text(text: str, tenant_type: TenantType) -> TenantKey:
    """The tenant key that was written as *text* (an argument, a row), in the cluster's type. Raises TenantKeyError."""
    if tenant_type == "int" and not _WHOLE.fullmatch(text):
        raise TenantKeyError(f"this cluster's tenants are of type int, and {text[:40]!r} is not a whole number")
    tenant: TenantKey = int(text) if tenant_type == "int" else text
    key_bytes(tenant, tenant_type)
    return tenant


def tenant_digest(tenant: TenantKey, *, secret: str = "") -> str:
    """16 hexadecimal digits that stand for *tenant* in metrics, traces and logs.

    Without a *secret* whoever knows the tenants' keys can find out which one it is.
    """
    kind = b"i" if isinstance(tenant, int) else b"s"
    return blake2b(kind + str(tenant).encode(), digest_size=8, key=secret.encode()[:64]).hexdigest()


def shard_of(tenant: object, *, tenant_type: TenantType, shard_count: int) -> int:
    """Shard number of *tenant* by hash alone; pins are the map's business."""
    digest = md5(key_bytes(tenant, tenant_type), usedforsecurity=False).digest()
    return int.from_bytes(digest[6:8], "big") & (shard_count - 1)


def sql_shard_of(column: str, *, tenant_type: TenantType, shard_count: int) -> str:
    """The same in SQL, of a *column* of type text or bigint (its name, already quoted); a row filter accepts it."""
    digest = f"md5({column})" if tenant_type == "str" else f"md5(int8send({column}))"
    raw = f"decode({digest}, 'hex')"
    return f"((get_byte({raw}, 6) * 256 + get_byte({raw}, 7)) & {check_shard_count(shard_count) - 1})"
