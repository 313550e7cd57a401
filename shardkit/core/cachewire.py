"""A hit's command as the bytes that Redis reads: for a hundred keys a join, where a client packs argument by argument."""

from __future__ import annotations

from collections.abc import Sequence


def packed_get(key: str) -> bytes:
    """GET *key*."""
    name = key.encode()
    return b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n" % (len(name), name)


def packed_mget(before: str, names: Sequence[str]) -> bytes:
    """MGET of all *names*, each with *before* in front of it. Ids of a shard are mostly of one length."""
    head = f"*{len(names) + 1}\r\n$4\r\nMGET\r\n"
    lengths = set(map(len, names))
    if len(lengths) == 1:
        each = f"${len(before) + lengths.pop()}\r\n{before}"
        packed = head + each + f"\r\n{each}".join(names) + "\r\n"
        if packed.isascii():  # else characters are not bytes
            return packed.encode()
    keys = [(before + name).encode() for name in names]
    return head.encode() + b"".join([b"$%d\r\n%b\r\n" % (len(key), key) for key in keys])
