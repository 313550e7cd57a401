"""Errors of the cache."""

from __future__ import annotations

from shardkit.errors.base import ShardKitError


class CacheError(ShardKitError):
    """The cache was asked for what it cannot do safely; nothing took effect."""

    code = "SK950"


class CacheDeclarationError(CacheError):
    """A Cached declaration cannot be kept: the model has to be changed."""

    code = "SK951"


class CacheKeyError(CacheError, ValueError):
    """A value cannot be a key of this cached entity; nothing was read."""

    code = "SK952"


class UnknownKeysError(CacheError):
    """A write to a cached table does not say which rows it changes; it was not committed."""

    code = "SK953"


class CacheUnavailableError(CacheError):
    """A marker could not be placed and cache_on_down is strict: the transaction was rolled back, run it again."""

    code = "SK954"
    retryable = True


class CacheRelayError(CacheError):
    """The relay cannot read a server's changes; what it did not pass comes again."""

    code = "SK955"
    retryable = True
