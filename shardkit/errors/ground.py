"""Errors of settings, catalog, routing, servers, sessions, ids and names."""

from __future__ import annotations

from shardkit.errors.base import Outcome, ShardKitError


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
    """The transaction's id, if the server had told it; `pg_xact_status` on the same timeline, and where the server has not
    crashed since (`life`), knows the outcome.
    """
    timeline: str | None = None
    life: str | None = None
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


class TableKindError(SettingsError):
    """A table's kind cannot hold what the model asks of it; nothing was started."""

    code = "SK105"
