"""Errors of work over several shards."""

from __future__ import annotations

from collections.abc import Mapping

from shardkit.errors.base import ShardKitError


class AcrossShardsError(ShardKitError):
    """Work over several shards could not be done."""

    code = "SK960"


class FanOutError(AcrossShardsError):
    """Some shards failed; no partial answer was given.

    ``failures`` has what each failing shard said, by its number.
    """

    code = "SK961"

    def __init__(self, message: str | None = None, *, failures: Mapping[int, BaseException] | None = None) -> None:
        super().__init__(message)
        self.failures = dict(failures or {})


class FanOutRefusedError(AcrossShardsError):
    """The answers of several shards to this statement could not be merged rightly, so it was not sent."""

    code = "SK962"


class ResultTooLargeError(AcrossShardsError):
    """The result of a fan-out is larger than was allowed; nothing of it was kept."""

    code = "SK963"


class NoSnapshotError(AcrossShardsError):
    """No moment was found at which every cross-shard transaction was wholly visible or not at all; try again."""

    code = "SK964"
    retryable = True


class TwoPhaseError(AcrossShardsError):
    """A transaction over several shards was rolled back on all of them; run it again."""

    code = "SK965"
    retryable = True


class TwoPhaseDisabledError(AcrossShardsError):
    """A server does not allow prepared transactions, so a transaction over several shards cannot be made."""

    code = "SK966"


class KeyTakenError(AcrossShardsError):
    """A key that is unique over all shards belongs to another row; nothing was written."""

    code = "SK967"
