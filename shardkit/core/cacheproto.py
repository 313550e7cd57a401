"""The cache's protocol, decided without I/O: what a reader, a writer and a filler do with what they find in Redis.

A writer puts a *marker*, naming its PostgreSQL transaction, on every key it changes, before COMMIT, and does nothing
afterwards. A reader that misses takes the *lease*, loads the row together with the snapshot that saw it, and may replace
the marker only if that snapshot shows every marked transaction as finished and is not older than the shard's *barrier*
(which stands in for the markers a Redis forgot). So PostgreSQL itself is the witness, and nobody has to survive a COMMIT.

``core/cachescripts.py`` has the same decisions as Lua; the tests hold the two against each other. Values as stored:

``V…@term``                      a row or a list of keys (``orm.codec``)
``N@term``                       there is no such row
``M|token|deadline|epoch|xids``  marker, and the lease of *token* until *deadline* (ms, Redis' clock; only for liveness)
``B|epoch|xid@term``             barrier: transactions up to *xid* may have had markers that are lost
``P|nonce``                      somebody is about to set the barrier

The *term* says in which time of which Redis master a value was put there. What ends with another term than the reader's
connection knows is no value. It is not part of the name: connections may disagree about the term for a moment (a master
changes its replication id when its first replica comes), but whoever writes marks the same key that all read.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Final, NamedTuple

ABSENT: Final = b"N"
VALUE: Final = b"V"
MARKER: Final = b"M"
TERM_LENGTH: Final = 9
MAX_XIDS: Final = 8
"""A marker names so many transactions one by one; more collapse to "all up to the highest"."""


class Snapshot(NamedTuple):
    """What one statement saw (``pg_snapshot``): transactions below ``xmin`` are finished, ``xmax`` and above are not."""

    xmin: int
    xmax: int
    running: frozenset[int]
    standby: bool = False


class Found(enum.Enum):
    """What a reader met where it asked for the lease."""

    LEASE = b"L"
    VALUE = b"V"
    BUSY = b"W"
    """Somebody else loads."""
    NO_BARRIER = b"P"
    """The barrier is missing, and it is on the caller to set it: its token is the nonce."""
    PENDING = b"Q"
    """The barrier is missing, and another one is at it."""
    NEWER = b"E"
    """Written at a later epoch of the shard than the caller knows: it should ask for the map."""


class Marker(NamedTuple):
    """``xids`` as text: numbers with commas, or ``^n`` for all up to *n*."""

    token: bytes
    deadline_ms: int
    epoch: int
    xids: bytes


def parse_snapshot(text: str, *, standby: bool = False) -> Snapshot:
    """From ``xmin:xmax:running,…``.

    A *standby*'s snapshot has an empty list of running transactions though they run: there only ``xmin`` says anything.
    """
    xmin, xmax, running = text.split(":")
    return Snapshot(int(xmin), int(xmax), frozenset(map(int, running.split(","))) if running else frozenset(), standby)


def finished(xid: int, snapshot: Snapshot) -> bool:
    """Whether *snapshot* shows transaction *xid* as committed or aborted, so that it sees all it will ever have done."""
    if xid < snapshot.xmin:
        return True
    return not snapshot.standby and xid < snapshot.xmax and xid not in snapshot.running


def settled(xids: bytes, barrier: int, snapshot: Snapshot) -> bool:
    """Whether what *snapshot* saw may stand for the key: every marked transaction is finished, and the barrier is passed."""
    if snapshot.xmin < barrier:
        return False
    if xids.startswith(b"^"):
        return snapshot.xmin > int(xids[1:])
    return all(finished(int(xid), snapshot) for xid in xids.split(b",") if xid)


def pack_marker(marker: Marker) -> bytes:
    """As it is stored."""
    return b"M|%b|%d|%d|%b" % marker


def parse_marker(value: bytes) -> Marker:
    """The parts of a stored marker. ValueError for anything else."""
    kind, token, deadline, epoch, xids = value.split(b"|")
    if kind != MARKER:
        raise ValueError("not a marker")
    return Marker(token, int(deadline), int(epoch), xids)


def with_xid(xids: bytes, xid: int) -> bytes:
    """*xids* and *xid*: all unsettled ones stay, for each could still commit."""
    if xids.startswith(b"^"):
        return b"^%d" % max(int(xids[1:]), xid)
    known = xids.split(b",") if xids else []
    if b"%d" % xid in known:
        return xids
    known.append(b"%d" % xid)
    return b",".join(known) if len(known) <= MAX_XIDS else b"^%d" % max(map(int, known))


def mark(value: bytes | None, *, xid: int, epoch: int) -> bytes:
    """What a writer in transaction *xid* leaves in place of *value*, before its COMMIT; a lease on it is lost.

    Transactions of an earlier epoch ended at the shard's fence, on another server; a marker of a later epoch stays,
    because a transaction of this one can no longer commit.
    """
    xids = b""
    if value is not None and value[:1] == MARKER:
        old = parse_marker(value)
        if old.epoch > epoch:
            return pack_marker(old._replace(token=b"", deadline_ms=0))
        xids = old.xids if old.epoch == epoch else b""
    return pack_marker(Marker(b"", 0, epoch, with_xid(xids, xid)))


def lease(
    value: bytes | None,
    *,
    barrier: bytes | None,
    token: bytes,
    epoch: int,
    term: bytes,
    now_ms: int,
    lease_ms: int,
    outdated: bytes = b"",
) -> tuple[Found, bytes | None]:
    """What a reader that missed meets, and what is left in place of *value* (the barrier's place for NO_BARRIER).

    *outdated* is a stored value (with its term) that the reader cannot use, of an older schema; that, values of other terms
    and foreign bytes are replaced.
    """
    if barrier is not None and barrier.startswith(b"P|"):
        return Found.PENDING, None
    at = int(barrier.split(b"|")[1]) if barrier is not None else -1
    if at > epoch:
        return Found.NEWER, None
    if at < epoch or of_term(barrier, term) is None:
        return Found.NO_BARRIER, b"P|" + token
    xids = b""
    if value is not None and value[:2] != b"M|":
        if value.endswith(term) and value != outdated:
            return Found.VALUE, None
    elif value is not None:
        old = parse_marker(value)
        if old.epoch > epoch:
            return Found.NEWER, None
        if old.token and old.deadline_ms > now_ms:
            return Found.BUSY, None
        xids = old.xids if old.epoch == epoch else b""
    return Found.LEASE, pack_marker(Marker(token, now_ms + lease_ms, epoch, xids))


def give_back(marker: bytes) -> bytes:
    """What replaces the *marker* of a lease that was not used: the marker without it; empty where nothing was marked."""
    parts = parse_marker(marker)
    return pack_marker(parts._replace(token=b"", deadline_ms=0)) if parts.xids else b""


def heard_of(value: bytes | None, *, xid: int, xmin: int | None) -> bool:
    """Whether nothing older than the finished transaction *xid* is, or can come to be, stored where *value* is.

    *xmin* is that of the snapshot in which a stored row was read. A lease could be filled by what was read before *xid* ended.
    """
    if value is None:
        return True
    if value[:2] == b"M|":
        marker = parse_marker(value)
        return not marker.token or marker.xids == b"%d" % xid or b"%d" % xid in marker.xids.split(b",")
    return xmin is not None and xmin > xid


def parse_barrier(value: bytes) -> int:
    """The transaction a stored barrier names."""
    return int(value[:-TERM_LENGTH].split(b"|")[2])


def pack_barrier(*, epoch: int, xid: int, term: bytes) -> bytes:
    """A barrier as it is stored; *xid* was assigned after the caller put its nonce in the barrier's place, in *term*."""
    return b"B|%d|%d%b" % (epoch, xid, term)


def tag(cluster: str, shard: int) -> str:
    """Hash tag of all keys of a shard: one slot of a Redis Cluster, and never another cluster's."""
    return f"{cluster}.{shard}"


def name_part(value: str) -> str:
    """*value* as one part of a key's name: no two values give the same name."""
    return value.replace("%", "%25").replace(":", "%3A")


def term(info: Mapping[str, str]) -> bytes:
    """Which time of which master this is, from the fields of ``INFO``.

    Whenever markers can have been lost while older values stayed, it is one that never was before: ``run_id`` is new when a
    process starts (with what it kept on disk), ``master_replid`` whenever one becomes master (without what its predecessor had
    not sent it yet). A change that nothing was lost at, costs a miss.
    """
    known = "|".join(info.get(field, "") for field in ("run_id", "master_replid"))
    return b"@" + sha256(known.encode()).digest()[: TERM_LENGTH - 1]


def of_term(value: bytes | None, term: bytes) -> bytes | None:
    """What is stored, without its end, if it was put there in *term*; else None. A marker is of none."""
    return value[:-TERM_LENGTH] if value is not None and value.endswith(term) else None


def all_of_term(values: Iterable[bytes | None], term: bytes) -> list[bytes | None]:
    """``of_term`` of each; a hundred at a time, where a call for each would be seen."""
    return [value[:-TERM_LENGTH] if value is not None and value.endswith(term) else None for value in values]
