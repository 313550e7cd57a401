"""What the doctor looks at: what each server, the catalog and the running programs say of themselves, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from shardkit.core.moving import Step
from shardkit.core.shardmap import ShardMap

Severity = Literal["problem", "risk"]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to be mended. A ``problem`` is wrong now; a ``risk`` will cost something when something else happens."""

    check: str
    where: str
    what: str
    remedy: str
    severity: Severity = "problem"


@dataclass(frozen=True, slots=True)
class RoleFacts:
    """One of our roles. ``powers``: what it may do and must not; ``owns``: shard tables that belong to it."""

    name: str
    powers: tuple[str, ...]
    owns: int


@dataclass(frozen=True, slots=True)
class TableFacts:
    """A tenants' table (or a view of one) whose rows row-level security does not keep apart as it should.

    ``active``: PostgreSQL applies policies to the application role there. ``ours``: our policy is there, unaltered.
    ``others``: policies that let the role see more.
    """

    schema: str
    table: str
    active: bool
    ours: bool
    others: tuple[str, ...] = ()
    is_view: bool = False


@dataclass(frozen=True, slots=True)
class SchemaFacts:
    """A shard's schema: its tables, how many of them refuse writes, what of ours is missing, and what it needs in locks."""

    name: str
    tables: int
    guarded: int
    missing: tuple[str, ...] = ()
    relations: int = 0
    widest: int = 0
    """A table with its indexes, the one that has most of them."""


@dataclass(frozen=True, slots=True)
class SlotFacts:
    """A replication slot of this database."""

    name: str
    active: bool
    status: str
    retained_bytes: int


@dataclass(frozen=True, slots=True)
class PreparedFacts:
    """A prepared transaction. ``ours``: of this cluster; ``outcome``: what the record says, None if nothing is decided."""

    gid: str
    age_s: float
    ours: bool
    overdue: bool
    outcome: str | None = None


@dataclass(frozen=True, slots=True)
class ReplicaFacts:
    """A replica named in the map. ``problem``: why it cannot be used; ``clock_s``: how far its clock is ahead of ours."""

    dsn: str
    problem: str | None
    clock_s: float = 0.0
    clock_error_s: float = 0.0


@dataclass(frozen=True, slots=True)
class MisplacedFacts:
    """Rows of one table that belong to another shard. ``whole``: all rows were read, else a sample."""

    schema: str
    table: str
    rows: int
    whole: bool


@dataclass(frozen=True, slots=True)
class WaitingFacts:
    """Rows that wait in an outbox of a shard: effects on other tenants, or (``of_cache``) markers that Redis has not got."""

    schema: str
    of_cache: bool
    rows: int
    oldest_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """One server as it says it is. Times are in seconds; a clock is how far it is ahead of ours, known to ``clock_error_s``."""

    version: int
    settings: Mapping[str, str] = field(default_factory=dict)
    standbys: int = 0
    synchronous_standbys: int = 0
    asynchronous_commit: tuple[str, ...] = ()
    """Roles and databases whose own setting of synchronous_commit is weaker than the server's."""
    clock_s: float = 0.0
    clock_error_s: float = 0.0
    pooled: bool = False
    roles: tuple[RoleFacts, ...] = ()
    tables: tuple[TableFacts, ...] = ()
    schemas: tuple[SchemaFacts, ...] = ()
    functions_missing: tuple[str, ...] = ()
    slots: tuple[SlotFacts, ...] = ()
    relays: int = 0
    """Relays of the cache that are connected."""
    subscriptions: tuple[str, ...] = ()
    publications: tuple[str, ...] = ()
    prepared: tuple[PreparedFacts, ...] = ()
    replicas: tuple[ReplicaFacts, ...] = ()
    waiting: tuple[WaitingFacts, ...] = ()
    misplaced: tuple[MisplacedFacts, ...] = ()
    unread: tuple[str, ...] = ()
    """Tables whose rows could not be read to the end in time."""


@dataclass(frozen=True, slots=True)
class MoveFacts:
    """A move that has not ended. ``held``: an operator works on it now."""

    id: int
    shard: int
    source: str
    target: str
    step: Step
    held: bool
    idle_s: float
    problem: str | None = None
    tenant: str | None = None
    into_shard: int | None = None


@dataclass(frozen=True, slots=True)
class ProgramFacts:
    """A running program, as its session at the catalog says: what it is called, its map's version, its connections' budget."""

    name: str
    address: str
    version: int
    budget: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What counts as too much, from the settings and the operator."""

    connection_budget: int
    fan_out_connections: int
    prepared_max: int
    pooled: bool
    backend_bytes: int = 256 << 20
    clock_s: float = 1.0
    idle_move_s: float = 900.0
    waiting_s: float = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Everything. A server that did not answer is a text in ``servers``: what it said instead."""

    map: ShardMap
    servers: Mapping[str, ServerFacts | str]
    limits: Limits
    moves: tuple[MoveFacts, ...] = ()
    programs: tuple[ProgramFacts, ...] = ()
    cache_warnings: tuple[str, ...] = ()
    catalog_revision: tuple[str, str] = ("", "")
    """The revision of the catalog's tables, and the newest one this release knows."""
    catalog_pooled: bool = False

    def answered(self) -> Mapping[str, ServerFacts]:
        """Servers that answered, by name."""
        return {name: found for name, found in self.servers.items() if isinstance(found, ServerFacts)}
