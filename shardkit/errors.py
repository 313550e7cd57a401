"""One tree of errors: each says what happened, whether it took effect, and what to do.

ShardKitError
├── SettingsError            SK100  a setting is missing, malformed or unsafe
│   └── TableKindError       SK105  a table's kind cannot hold what the model asks of it
├── LocalClusterError        SK110  the local cluster could not be started or stopped
│   ├── BinariesMissingError SK111  no PostgreSQL or Redis-protocol server was found
│   ├── PortTakenError       SK112  a port that was asked for is in use
│   └── DiskFullError        SK113  the disk has no room for the servers' data
├── CatalogError             SK200  the catalog said no
│   ├── CatalogUnavailableError SK201  the catalog cannot be reached
│   ├── NotInitializedError  SK202  the catalog holds no cluster yet
│   ├── ClusterExistsError   SK203  the catalog, or a server, already belongs to a cluster
│   ├── MapConflictError     SK204  somebody else changed the map in between
│   └── StaleMapError        SK205  a map older than the one in use was offered
├── RoutingError             SK300  a request could not be routed
│   ├── NoTenantError        SK301  no tenant was given and none is set
│   ├── TenantKeyError       SK302  a value cannot be a tenant key of this cluster
│   ├── TenantLockedError    SK303  another tenant was asked for inside a locked block
│   ├── UnknownShardError    SK304  the map has no such shard
│   ├── UnknownServerError   SK305  the map has no such server
│   └── ShardMovedError      SK306  the shard moved while a transaction was open
├── ServerError              SK400  a PostgreSQL server is in trouble
│   ├── ServerDownError      SK401  the server does not answer
│   ├── WrongServerError     SK402  the DSN leads to a server that is not the one in the map
│   ├── PoolTimeoutError     SK403  every connection of the budget was busy for too long
│   ├── DeadlineError        SK404  the deadline passed before the answer came
│   └── CommitUnknownError   SK405  COMMIT was sent and its answer was lost
├── SessionError             SK500  a routed session was used in a way that would not be safe
│   ├── TenantMismatchError  SK501  an object of one tenant was given to another tenant's session
│   ├── ReadOnlyError        SK502  a read-only unit of work tried something else than a plain read
│   └── TokenError           SK503  a read-your-writes token is malformed, forged or another cluster's
├── IdError                  SK600  a value is not an id of this cluster
├── PlacementError           SK700  no placement satisfies what was asked
├── NameRejectedError        SK800  a name could not become an identifier
├── CacheError               SK950  the cache was asked for what it cannot do safely
│   ├── CacheDeclarationError SK951 a Cached declaration cannot be kept
│   ├── CacheKeyError        SK952  a value cannot be a key of this cached entity
│   ├── UnknownKeysError     SK953  a write to a cached table does not say which rows it changes
│   └── CacheUnavailableError SK954 a marker could not be placed, and the settings say that the write must not go on
├── MoveError                SK900  a move could not go on
│   ├── MoveRefusedError     SK901  a check found what would make the move fail later
│   ├── MoveBusyError        SK902  another move, or another operator, has the shard in hand
│   ├── UnknownMoveError     SK903  the journal has no such move, or it cannot be done in its step
│   ├── PastNoReturnError    SK904  the fence is committed: the move can no longer be aborted
│   ├── NotEqualError        SK905  source and target differ
│   ├── FenceTimeoutError    SK906  the fence could not be had within the budget
│   ├── MoveInterruptedError SK907  a server or the catalog went away in the middle
│   └── LeaseLostError       SK908  another operator took the move over
├── MigrationError           SK970  a migration of the fleet could not be begun or finished
│   ├── FleetBusyError       SK971  another runner is migrating this cluster
│   ├── UnknownRevisionError SK972  the tree has no such revision
│   ├── TwoHeadsError        SK973  the tree has several heads
│   ├── NoDowngradeError     SK974  a revision has no code that takes it back
│   └── NeedsOnlineError     SK975  a revision cannot be rendered as SQL
└── AcrossShardsError        SK960  work over several shards could not be done
    ├── FanOutError          SK961  shards failed, and a part is not taken for the whole
    ├── FanOutRefusedError   SK962  the answers of shards to this statement could not be merged rightly
    ├── ResultTooLargeError  SK963  a fan-out's result is larger than was allowed
    ├── NoSnapshotError      SK964  no moment was found at which no cross-shard transaction was half visible
    ├── TwoPhaseError        SK965  a transaction over several shards was rolled back everywhere
    ├── TwoPhaseDisabledError SK966 a server does not allow prepared transactions
    └── KeyTakenError        SK967  a key that is unique over all shards belongs to another row
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

DOCS = "docs/reference/errors.md"


class Outcome(enum.Enum):
    """What became of the work an error interrupted (law 5)."""

    DONE = "done"
    NOT_DONE = "not done"
    UNKNOWN = "unknown"


class ShardKitError(Exception):
    """Something went wrong in shardkit.

    ``outcome`` says whether the work took effect, ``retryable`` whether the same unit of work may simply be run again,
    ``code`` names the error for good; its page is ``docs/reference/errors.md#<code>``.
    """

    code = "SK000"
    outcome: Outcome = Outcome.NOT_DONE
    retryable: bool = False

    def __init__(self, message: str | None = None, *, outcome: Outcome | None = None) -> None:
        super().__init__(message or (self.__doc__ or "").partition("\n")[0])
        if outcome is not None:
            self.outcome = outcome

    @property
    def docs(self) -> str:
        """Where this error is explained, relative to the project."""
        return f"{DOCS}#{self.code.lower()}"

    def __str__(self) -> str:
        return f"{super().__str__()} [{self.code}; {self.outcome.value}]"


class SettingsError(ShardKitError):
    """A setting is missing, malformed or unsafe; nothing was started."""

    code = "SK100"


class LocalClusterError(ShardKitError):
    """The local cluster could not be started or stopped."""

    code = "SK110"


class BinariesMissingError(LocalClusterError):
    """No server binaries were found: pip install "shardkit[local]"."""

    code = "SK111"


class PortTakenError(LocalClusterError):
    """A port that was asked for is in use; leave it out to get a free one."""

    code = "SK112"


class DiskFullError(LocalClusterError):
    """The disk has no room for the servers' data."""

    code = "SK113"


class CatalogError(ShardKitError):
    """The catalog refused the change; nothing was changed."""

    code = "SK200"


class CatalogUnavailableError(CatalogError):
    """The catalog cannot be reached; tenants that can already be routed are still served."""

    code = "SK201"
    retryable = True


class NotInitializedError(CatalogError):
    """The catalog holds no cluster yet: run `shardkit init`."""

    code = "SK202"


class ClusterExistsError(CatalogError):
    """The catalog, or a server, already belongs to a cluster; nothing was changed."""

    code = "SK203"


class MapConflictError(CatalogError):
    """Somebody else changed the shard map in between; nothing was changed. Look at it again, then repeat."""

    code = "SK204"
    retryable = True


class StaleMapError(CatalogError):
    """A shard map older than the one in use was offered, and refused."""

    code = "SK205"


class RoutingError(ShardKitError):
    """A request could not be routed; nothing was sent to any server."""

    code = "SK300"


class NoTenantError(RoutingError):
    """No tenant: pass one, or enter `with kit.tenant(...)`."""

    code = "SK301"


class TenantKeyError(RoutingError, ValueError):
    """A value cannot be a tenant key of this cluster."""

    code = "SK302"


class TenantLockedError(RoutingError):
    """Another tenant was asked for inside a block that is locked to one."""

    code = "SK303"


class UnknownShardError(RoutingError, LookupError):
    """The shard map has no such shard."""

    code = "SK304"


class UnknownServerError(RoutingError, LookupError):
    """The shard map has no such server."""

    code = "SK305"


class ShardMovedError(RoutingError):
    """The shard moved while the transaction was open: it was rolled back, run the unit of work again."""

    code = "SK306"
    retryable = True


class ServerError(ShardKitError):
    """A PostgreSQL server is in trouble."""

    code = "SK400"


class ServerDownError(ServerError):
    """The server does not answer; other servers' tenants are not affected."""

    code = "SK401"
    retryable = True


class WrongServerError(ServerError):
    """The DSN leads to a database that is not the one named in the shard map; it was not used."""

    code = "SK402"


class PoolTimeoutError(ServerError):
    """Every connection of this server's budget stayed busy for too long; nothing was sent."""

    code = "SK403"
    retryable = True


class DeadlineError(ServerError):
    """The deadline passed before the answer came; the connection was dropped."""

    code = "SK404"
    retryable = True


class CommitUnknownError(ServerError):
    """COMMIT was sent and its answer was lost: the work may or may not have taken effect."""

    code = "SK405"
    outcome = Outcome.UNKNOWN
    server: str | None = None
    """Name of the server that was asked to commit."""
    xid: str | None = None
    """The transaction's id, if the server had told it; `pg_xact_status` on the same timeline knows the outcome."""
    timeline: str | None = None
    backend_pid: int | None = None


class SessionError(ShardKitError):
    """A routed session was used in a way that would not be safe; the statement was not sent."""

    code = "SK500"


class TenantMismatchError(SessionError):
    """An object of one tenant was given to another tenant's session; it was not written."""

    code = "SK501"


class ReadOnlyError(SessionError):
    """A read-only unit of work tried something else than a plain read; it was not sent."""

    code = "SK502"


class TokenError(SessionError, ValueError):
    """A read-your-writes token is malformed, forged or another cluster's; nothing was read."""

    code = "SK503"


class IdError(ShardKitError, ValueError):
    """A value is not an id of this cluster."""

    code = "SK600"


class PlacementError(ShardKitError):
    """No placement satisfies what was asked; nothing was changed."""

    code = "SK700"


class NameRejectedError(ShardKitError, ValueError):
    """A name could not become an identifier; nothing was changed."""

    code = "SK800"


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


class TableKindError(SettingsError):
    """A table's kind cannot hold what the model asks of it; nothing was started."""

    code = "SK105"


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


class LeaseLostError(MoveError):
    """Another operator took the move over; this one stopped."""

    code = "SK908"


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
