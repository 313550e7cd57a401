"""The shard map: a frozen value with every look-up, replaced as a whole and never mutated."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple
from uuid import UUID

from shardkit.core.hashing import HASH_VERSION, TENANT_TYPES, TenantKey, TenantType, check_shard_count, shard_of
from shardkit.core.names import schema_name
from shardkit.errors import SettingsError, UnknownServerError, UnknownShardError


class ServerState(enum.Enum):
    """What a server may be used for."""

    ACTIVE = "active"
    DRAINING = "draining"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class Server:
    """One PostgreSQL database that holds shards. ``dsn`` has no password: credentials are the settings' business."""

    name: str
    dsn: str = field(repr=False)
    server_id: UUID
    weight: float = 1.0
    state: ServerState = ServerState.ACTIVE
    replicas: tuple[str, ...] = field(default=(), repr=False)
    timeline: int = 0
    """The highest timeline a program has seen there; a database with this identity on a lower one is an old primary."""


class Placement(NamedTuple):
    """Where a shard lives. ``parent`` is the shard it was isolated from, if it was."""

    server: str
    epoch: int
    parent: int | None = None


class Route(NamedTuple):
    """One look-up in the shard map: tenant → (shard, epoch, schema, server)."""

    tenant: TenantKey | None
    shard: int
    schema: str
    server: str
    epoch: int


@dataclass(frozen=True, slots=True)
class ShardMap:
    """Servers, placements and pins of one cluster at one version.

    Dicts are copied, once: a map made from another one (``dataclasses.replace``) shares what did not change.
    Raises SettingsError for a map by which this program would route wrongly.
    """

    cluster_id: UUID
    version: int
    shard_count: int
    tenant_type: TenantType
    servers: Mapping[str, Server] = field(repr=False)
    placements: Mapping[int, Placement] = field(repr=False)
    pins: Mapping[TenantKey, int] = field(default_factory=dict, repr=False)
    hash_version: int = HASH_VERSION
    _children: Mapping[int, list[int]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_shard_count(self.shard_count)
        if self.tenant_type not in TENANT_TYPES:
            raise SettingsError(f"tenants of type {self.tenant_type!r} are not possible: it is 'str' or 'int'")
        if self.hash_version != HASH_VERSION:
            raise SettingsError(
                f"this map places tenants by hash version {self.hash_version!r}, this shardkit knows only "
                f"{HASH_VERSION}: use the release that the cluster was made with, or a newer one"
            )
        for name in ("servers", "placements", "pins"):
            table = getattr(self, name)
            if not isinstance(table, MappingProxyType):
                object.__setattr__(self, name, MappingProxyType(dict(table)))
        children: dict[int, list[int]] = {}
        for shard, place in self.placements.items():
            if place.parent is not None:
                children.setdefault(place.parent, []).append(shard)
        object.__setattr__(self, "_children", children)

    def shard_of(self, tenant: object) -> int:
        """Shard of *tenant*: its pin, else its hash. Raises TenantKeyError for what cannot be a key."""
        shard = shard_of(tenant, tenant_type=self.tenant_type, shard_count=self.shard_count)
        return self.pins.get(tenant, shard) if self.pins else shard  # type: ignore[call-overload]  # checked above

    def locate(self, tenant: TenantKey) -> Route:
        """Route of *tenant*."""
        return self.route(self.shard_of(tenant), tenant)

    def route(self, shard: int, tenant: TenantKey | None = None) -> Route:
        """Route of a shard by its number, for *tenant* if there is one."""
        place = self.placement(shard)
        return Route(tenant, shard, schema_name(shard, place.epoch), place.server, place.epoch)

    def placement(self, shard: int) -> Placement:
        """Server and epoch of *shard*. Raises UnknownShardError."""
        try:
            return self.placements[shard]
        except KeyError:
            raise UnknownShardError(
                f"shard {shard!r} is not in the map (version {self.version}, {len(self.placements)} shards)"
            ) from None

    def server(self, name: str) -> Server:
        """The server called *name*. Raises UnknownServerError."""
        try:
            return self.servers[name]
        except KeyError:
            known = ", ".join(sorted(self.servers)) or "none"
            raise UnknownServerError(f"server {name!r} is not in the map; known: {known}") from None

    def shards_on(self, server: str) -> list[int]:
        """Numbers of the shards placed on *server*, ascending."""
        self.server(server)
        return sorted(shard for shard, place in self.placements.items() if place.server == server)

    def descendants(self, shard: int) -> list[int]:
        """Shards that were isolated out of *shard*, and out of those; an id born in *shard* may live in any of them."""
        found: set[int] = set()
        ahead = [shard]
        while ahead:
            for child in self._children.get(ahead.pop(), ()):
                if child not in found and child != shard:
                    found.add(child)
                    ahead.append(child)
        return sorted(found)

    def family(self, shard: int) -> list[int]:
        """Shards in which a row born in *shard* may live by now, *shard* first: those that tenants were isolated into, and,
        because a tenant may have gone back, those that it was isolated from.
        """
        root, seen = shard, {shard}
        while (parent := self.placement(root).parent) is not None and parent not in seen:
            root = parent
            seen.add(root)
        return [shard, *(other for other in (root, *self.descendants(root)) if other != shard)]
