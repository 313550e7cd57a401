"""How a row, or a list of keys, is kept in the cache: its name, its bytes, and how long."""

from __future__ import annotations

import time
from copy import deepcopy
from typing import Any

from shardkit.core.cacheproto import ABSENT
from shardkit.orm.cached import Entity


class RowValue:
    """How a row is stored and loaded."""

    __slots__ = ("entity", "name")

    def __init__(self, entity: Entity, name: str) -> None:
        self.entity, self.name = entity, name

    def decode(self, raw: bytes) -> tuple[bool, Any]:
        """Whether *raw* is usable, and the row in it (None: there is none)."""
        if raw == ABSENT:
            return True, None
        row = self.entity.codec.decode(raw)
        return row is not None, row

    def again(self, value: Any) -> Any:
        """A loaded *value* for another caller, who may change what is in it."""
        return deepcopy(value)

    def encode(self, value: Any, *, xmin: int, load_ms: int) -> bytes | None:
        """Bytes of a row, None where it is not to be stored."""
        made = self.entity.codec.encode(value, xmin=xmin, now_s=int(time.time()), load_ms=load_ms)
        return made if made is not None and len(made) <= self.entity.declared.max_bytes else None


class ListValue(RowValue):
    """How a list of keys is stored and loaded."""

    __slots__ = ()

    def decode(self, raw: bytes) -> tuple[bool, Any]:
        """Whether *raw* is usable, and the keys in it."""
        assert self.entity.list_codec is not None
        keys = self.entity.list_codec.decode(raw)
        return keys is not None, keys

    def again(self, value: Any) -> Any:
        """The keys: nobody changes them."""
        return value

    def encode(self, value: Any, *, xmin: int, load_ms: int) -> bytes | None:
        """Bytes of a list, None where it is not to be stored."""
        assert self.entity.list_codec is not None
        made = self.entity.list_codec.encode(value, xmin=xmin, now_s=int(time.time()), load_ms=load_ms)
        return made if len(made) <= self.entity.declared.max_bytes * 4 else None


def may_replace(entity: Entity, raw: bytes) -> bool:
    """Whether what cannot be used may be overwritten: not what a newer version of the program wrote."""
    return not (raw[:2] == b"V\x01" and int.from_bytes(raw[2:4], "big") > entity.codec.version)
