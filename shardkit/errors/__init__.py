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
│   ├── CacheRelayError       SK955  the relay cannot read a server's changes; what it did not pass comes again
│   └── CacheUnavailableError SK954 a marker could not be placed, and the settings say that the write must not go on
├── MoveError                SK900  a move could not go on
│   ├── MoveRefusedError     SK901  a check found what would make the move fail later
│   ├── MoveBusyError        SK902  another move, or another operator, has the shard in hand
│   ├── UnknownMoveError     SK903  the journal has no such move, or it cannot be done in its step
│   ├── PastNoReturnError    SK904  the fence is committed: the move can no longer be aborted
│   ├── NotEqualError        SK905  source and target differ
│   ├── FenceTimeoutError    SK906  the fence could not be had within the budget
│   ├── MoveInterruptedError SK907  a server or the catalog went away in the middle
│   ├── LeaseLostError       SK908  another operator took the move over
│   └── WalLimitError        SK909  the move held back more WAL on the source than allowed
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

from shardkit.errors.across import (
    AcrossShardsError,
    FanOutError,
    FanOutRefusedError,
    KeyTakenError,
    NoSnapshotError,
    ResultTooLargeError,
    TwoPhaseDisabledError,
    TwoPhaseError,
)
from shardkit.errors.base import DOCS, Outcome, ShardKitError
from shardkit.errors.cache import (
    CacheDeclarationError,
    CacheError,
    CacheKeyError,
    CacheRelayError,
    CacheUnavailableError,
    UnknownKeysError,
)
from shardkit.errors.ground import (
    BinariesMissingError,
    CatalogError,
    CatalogUnavailableError,
    ClusterExistsError,
    CommitUnknownError,
    DeadlineError,
    DiskFullError,
    IdError,
    LocalClusterError,
    MapConflictError,
    NameRejectedError,
    NoTenantError,
    NotInitializedError,
    PlacementError,
    PoolTimeoutError,
    PortTakenError,
    ReadOnlyError,
    RoutingError,
    ServerDownError,
    ServerError,
    SessionError,
    SettingsError,
    ShardMovedError,
    StaleMapError,
    TableKindError,
    TenantKeyError,
    TenantLockedError,
    TenantMismatchError,
    TokenError,
    UnknownServerError,
    UnknownShardError,
    WrongServerError,
)
from shardkit.errors.operations import (
    FenceTimeoutError,
    FleetBusyError,
    LeaseLostError,
    MigrationError,
    MoveBusyError,
    MoveError,
    MoveInterruptedError,
    MoveRefusedError,
    NeedsOnlineError,
    NoDowngradeError,
    NotEqualError,
    PastNoReturnError,
    TwoHeadsError,
    UnknownMoveError,
    UnknownRevisionError,
    WalLimitError,
)

__all__ = [
    "DOCS",
    "AcrossShardsError",
    "BinariesMissingError",
    "CacheDeclarationError",
    "CacheError",
    "CacheKeyError",
    "CacheRelayError",
    "CacheUnavailableError",
    "CatalogError",
    "CatalogUnavailableError",
    "ClusterExistsError",
    "CommitUnknownError",
    "DeadlineError",
    "DiskFullError",
    "FanOutError",
    "FanOutRefusedError",
    "FenceTimeoutError",
    "FleetBusyError",
    "IdError",
    "KeyTakenError",
    "LeaseLostError",
    "LocalClusterError",
    "MapConflictError",
    "MigrationError",
    "MoveBusyError",
    "MoveError",
    "MoveInterruptedError",
    "MoveRefusedError",
    "NameRejectedError",
    "NeedsOnlineError",
    "NoDowngradeError",
    "NoSnapshotError",
    "NoTenantError",
    "NotEqualError",
    "NotInitializedError",
    "Outcome",
    "PastNoReturnError",
    "PlacementError",
    "PoolTimeoutError",
    "PortTakenError",
    "ReadOnlyError",
    "ResultTooLargeError",
    "RoutingError",
    "ServerDownError",
    "ServerError",
    "SessionError",
    "SettingsError",
    "ShardKitError",
    "ShardMovedError",
    "StaleMapError",
    "TableKindError",
    "TenantKeyError",
    "TenantLockedError",
    "TenantMismatchError",
    "TokenError",
    "TwoHeadsError",
    "TwoPhaseDisabledError",
    "TwoPhaseError",
    "UnknownKeysError",
    "UnknownMoveError",
    "UnknownRevisionError",
    "UnknownServerError",
    "UnknownShardError",
    "WalLimitError",
    "WrongServerError",
]

for _name in __all__:  # they live here, wherever they are written down
    if isinstance(_class := globals()[_name], type):
        _class.__module__ = __name__
