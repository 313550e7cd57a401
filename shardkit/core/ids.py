"""A 64-bit id says when and in which shard a row was born: 41 bits of milliseconds, 13 of shard, 10 of sequence.

The top bit stays 0, so that every id is a positive ``bigint``; the milliseconds last until November 2060.
``sql/ids.sql`` makes ids in the same layout.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from shardkit.errors import IdError

EPOCH_MS: Final = 1_767_225_600_000  # 2026-01-01T00:00Z
SHARD_BITS: Final = 13
SEQUENCE_BITS: Final = 10
MAX_ID: Final = (1 << 63) - 1

_MS_SHIFT: Final = SHARD_BITS + SEQUENCE_BITS
_SHARD_MASK: Final = (1 << SHARD_BITS) - 1
_SEQUENCE_MASK: Final = (1 << SEQUENCE_BITS) - 1


class IdParts(NamedTuple):
    """What an id says: ``ms`` since 1970 (UTC), the ``shard`` of birth, the ``sequence`` in that millisecond."""

    ms: int
    shard: int
    sequence: int


def pack(ms: int, *, shard: int, sequence: int) -> int:
    """The id born at *ms* (since 1970) in *shard*, the *sequence*-th in it; IdError if a part has no room."""
    if not type(ms) is type(shard) is type(sequence) is int:
        raise IdError("the parts of an id are ints")
    since = ms - EPOCH_MS
    if not (0 <= since <= MAX_ID >> _MS_SHIFT and 0 <= shard <= _SHARD_MASK and 0 <= sequence <= _SEQUENCE_MASK):
        raise IdError(f"no id has ms={ms!r}, shard={shard!r}, sequence={sequence!r}: a part is out of range")
    return check_id(since << _MS_SHIFT | shard << SEQUENCE_BITS | sequence)


def unpack(key: int) -> IdParts:
    """The parts of id *key*; IdError where it cannot be one."""
    check_id(key)
    return IdParts((key >> _MS_SHIFT) + EPOCH_MS, key >> SEQUENCE_BITS & _SHARD_MASK, key & _SEQUENCE_MASK)


def shard_of_id(key: int) -> int:
    """The shard in which the row of id *key* was born; IdError where *key* cannot be an id."""
    if type(key) is int and 0 < key <= MAX_ID:  # spelled out again: this stands in the way of every request by id
        return key >> SEQUENCE_BITS & _SHARD_MASK
    raise _not_an_id(key)


def check_id(key: int) -> int:
    """*key* itself if it can be an id: an ``int`` (no ``bool``) of 1 to 2**63 - 1."""
    if type(key) is int and 0 < key <= MAX_ID:
        return key
    raise _not_an_id(key)


def _not_an_id(key: object) -> IdError:
    if type(key) is not int:
        return IdError(f"an id is an int, not {type(key).__name__}; convert it where the request is read")
    return IdError("an id lies between 1 and 2**63 - 1; this number does not")
