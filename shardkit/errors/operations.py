"""Errors of what DBAs run: moves and migrations."""

from __future__ import annotations

from shardkit.errors.base import Outcome, ShardKitError


class MigrationError(ShardKitError):
    """A migration of the fleet could not be begun or finished; what is done stays done, run it again for the rest."""

    code = "SK970"


class FleetBusyError(MigrationError):
    """Another runner is migrating this cluster; nothing was done. `shardkit migrate status` shows how far it is."""

    code = "SK971"
    retryable = True


class UnknownRevisionError(MigrationError, LookupError):
    """The tree has no such revision; nothing was done."""

    code = "SK972"


class TwoHeadsError(MigrationError):
    """The tree has several heads; nothing was done. Merge them: `alembic merge heads`."""

    code = "SK973"


class NoDowngradeError(MigrationError):
    """A revision has no code that takes it back; nothing was done."""

    code = "SK974"


class NeedsOnlineError(MigrationError):
    """A revision cannot be rendered as SQL, so it runs online, shard by shard."""

    code = "SK975"


class MoveError(ShardKitError):
    """A move could not go on."""

    code = "SK900"


class MoveRefusedError(MoveError):
    """A check found what would make the move fail later; nothing was copied."""

    code = "SK901"


class MoveBusyError(MoveError):
    """Another move, or another operator, has the shard in hand; nothing was done."""

    code = "SK902"


class UnknownMoveError(MoveError, LookupError):
    """The journal has no such move, or this cannot be done in its step; nothing was done."""

    code = "SK903"


class PastNoReturnError(MoveError):
    """The fence is committed: the move can no longer be aborted, only resumed, and rolled back after that."""

    code = "SK904"


class NotEqualError(MoveError):
    """Source and target differ: the source goes on serving, nothing was switched over."""

    code = "SK905"


class FenceTimeoutError(MoveError):
    """The fence could not be had within the budget: the source goes on serving; `shardkit moves resume` tries again."""

    code = "SK906"
    retryable = True


class MoveInterruptedError(MoveError):
    """A server or the catalog went away in the middle of a move: `shardkit moves resume` goes on, nothing is lost."""

    code = "SK907"
    outcome = Outcome.UNKNOWN


class WalLimitError(MoveError):
    """The move held back more WAL on the source than allowed."""

    code = "SK909"


class LeaseLostError(MoveError):
    """Another operator took the move over; this one stopped."""

    code = "SK908"
