"""From (phase, SQLSTATE) to done, not done or unknown; and whether an error may mean that the shard moved (laws 1 and 5)."""

from __future__ import annotations

from typing import Final

from shardkit.errors import Outcome

FENCE: Final = frozenset({"42P01", "3F000", "42883", "42704"})
"""What a client with an old map meets: no such table, schema, function or type under that epoch's name."""

STALE_PLAN: Final = frozenset({"0A000", "26000"})
"""A prepared statement that no longer fits its tables, or is gone: the connection must not keep it."""

_RETRYABLE: Final = frozenset({"40001", "40P01", "55P03", "57P01", "57P02", "57P03", "25006"})
_DOUBTFUL_CLASSES: Final = ("08", "53", "57P", "58", "XX")


def may_have_moved(sqlstate: str | None) -> bool:
    """Whether an error can be the fence; it is only if the shard's epoch really changed."""
    return sqlstate in FENCE


def commit_outcome(sqlstate: str | None, *, lost: bool) -> Outcome:
    """Outcome of a COMMIT that ended in an error; *lost* says that the connection did not survive it.

    A reported error is no proof: with fsync failing a client got 58030 and the row was there after recovery.
    """
    if lost or sqlstate is None or sqlstate.startswith(_DOUBTFUL_CLASSES):
        return Outcome.UNKNOWN
    return Outcome.NOT_DONE


def safe_to_retry(sqlstate: str | None) -> bool:
    """Whether a unit of work that ended so before COMMIT may simply be run again."""
    return sqlstate in _RETRYABLE
