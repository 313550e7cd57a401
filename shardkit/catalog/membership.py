"""Servers join and leave a cluster: planned without a change, carried out in steps that can be run again."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any
from uuid import uuid5

from shardkit.catalog import journal
from shardkit.catalog.changes import add_server, change_server, remove_server
from shardkit.catalog.overview import current_map, opened
from shardkit.core.names import check_server_name
from shardkit.core.shardmap import Server, ServerState
from shardkit.db.connect import at, connect_living, public_dsn, server_url, url_at
from shardkit.db.lineage import Lineage
from shardkit.db.reference import drop_slot, slot_name, unfollow
from shardkit.db.relayslots import drop_relay_slots
from shardkit.db.servers import forget_identity, identity, prepare_server, survey
from shardkit.errors import CatalogError, ClusterExistsError, SettingsError
from shardkit.settings import Secret, Settings

AGAIN = "the map does not have the server yet: run the same command again"


@dataclass(frozen=True, slots=True)
class Joining:
    """A server that is to be added; ``there``: the map has it already, as it was asked for."""

    server: Server
    url: Secret = field(repr=False)
    there: bool


def plan_joining(settings: Settings, name: str, url: str, *, weight: float = 1.0) -> Joining:
    """Check that the database behind *url* can become the server *name*; nothing is changed.

    Raises NameRejectedError, SettingsError, ServerDownError, ClusterExistsError, CatalogError.
    """
    check_server_name(name)
    _weight(weight)
    shardmap = current_map(settings)
    server = Server(name, public_dsn(url), uuid5(shardmap.cluster_id, name), weight)
    with at(url, settings, name=f"server {name!r}") as connection:
        survey(connection, f"server {name!r}")
        owner = identity(connection)
    known = shardmap.servers.get(name)
    if known is not None:
        if (known.dsn, known.server_id, known.weight) == (server.dsn, server.server_id, weight):
            return Joining(known, Secret(url), there=True)
        raise CatalogError(
            f"the map has another server {name!r} ({known.dsn}) already; nothing was changed. Choose another name"
        )
    if owner is not None and owner != (shardmap.cluster_id, server.server_id):
        whose = "is a server of this cluster" if owner[0] == shardmap.cluster_id else f"belongs to another cluster ({owner[0]})"
        raise ClusterExistsError(f"the database of server {name!r} {whose}; nothing was changed. Give an empty database")
    return Joining(server, Secret(url), there=False)


def join(settings: Settings, joining: Joining) -> None:
    """Prepare the server, then add it to the map, with no shard on it."""
    cluster_id = current_map(settings).cluster_id
    with at(joining.url, settings, name=f"server {joining.server.name!r}", then=AGAIN) as connection:
        prepare_server(connection, cluster_id=cluster_id, server_id=joining.server.server_id)
    with opened(settings) as catalog:
        add_server(catalog, joining.server)


@dataclass(frozen=True, slots=True)
class Changing:
    """What the map is to say of a server; ``needed``: it says something else now.

    ``followed``: numbers of moves that have not ended, whose subscriptions know the old address.
    """

    before: Server
    after: Server
    followed: tuple[int, ...] = ()

    @property
    def needed(self) -> bool:
        """Whether there is anything to change."""
        return self.before != self.after


def plan_change(
    settings: Settings, name: str, *, url: str | None = None, weight: float | None = None, state: ServerState | None = None
) -> Changing:
    """The server *name* with what is given of it: another address, share of the shards, use. Nothing is changed.

    Behind *url*, which takes what it leaves out from the address known now, the same server must answer, as a primary. Raises
    UnknownServerError, SettingsError, ServerDownError, WrongServerError.
    """
    shardmap = current_map(settings)
    before = after = shardmap.server(name)
    if weight is not None:
        after = replace(after, weight=_weight(weight))
    if state is not None:
        after = replace(after, state=state)
    if url is not None:
        there = Secret(url_at(before, url, settings))
        after = replace(after, dsn=public_dsn(there))
        way = replace(settings, servers={**settings.servers, name: there})
        connect_living(after, way, cluster_id=shardmap.cluster_id, lineage=Lineage()).close()
    if after.dsn == before.dsn:
        return Changing(before, after)
    with opened(settings) as catalog:
        return Changing(before, after, tuple(_moves_at(catalog, name)))


def carry_out_change(settings: Settings, changing: Changing) -> None:
    """Tell the catalog. Raises UnknownServerError where the server was removed in between."""
    before, after = changing.before, changing.after
    with opened(settings) as catalog:
        change_server(
            catalog,
            after.name,
            dsn=after.dsn if after.dsn != before.dsn else None,
            weight=after.weight if after.weight != before.weight else None,
            state=after.state if after.state is not before.state else None,
        )


def _weight(weight: float) -> float:
    """*weight*, if it is one."""
    if not 0 < weight < float("inf"):
        raise SettingsError(f"a weight is a number above 0, not {weight!r}; nothing was changed")
    return weight


def plan_leaving(settings: Settings, name: str) -> Server:
    """The server *name*, if it may leave: it holds no shard. Raises UnknownServerError, CatalogError."""
    shardmap = current_map(settings)
    server = shardmap.server(name)
    held = len(shardmap.shards_on(name))
    if held:
        raise CatalogError(f"server {name!r} still holds {held} shards: move them away first; nothing was changed")
    if len(shardmap.servers) == 1:
        raise CatalogError(f"{name!r} is the only server of the cluster; nothing was changed")
    with opened(settings) as catalog:
        _has_no_moves(catalog, name)
    return server


def _moves_at(catalog: Any, name: str) -> list[int]:
    """Numbers of the moves in which the server has a part and that have not ended."""
    return sorted(move.id for move in journal.moves(catalog) if name in (move.source, move.target))


def _has_no_moves(catalog: Any, name: str) -> None:
    """Raise CatalogError while a move needs the server: it has a follower's rows, and holds back the other server's log."""
    busy = _moves_at(catalog, name)
    if busy:
        raise CatalogError(
            f"server {name!r} has a part in moves that have not ended ({', '.join(map(str, busy))}): end them first "
            "(`shardkit moves finish --all` drops the followers of those that soak); nothing was changed"
        )


def leave(settings: Settings, server: Server, *, unreachable: bool = False) -> None:
    """Take *server* out of the map and its identity out of the database; *unreachable*: without touching the database."""
    cluster_id = current_map(settings).cluster_id

    def let_go() -> None:
        if not unreachable:
            with at(server_url(server, settings), settings, name=f"server {server.name!r}") as connection:
                if identity(connection) == (cluster_id, server.server_id):
                    unfollow(connection, slot=slot_name(server.server_id))
                    drop_relay_slots(connection, cluster_id=cluster_id)
                    forget_identity(connection, cluster_id=cluster_id)
        with opened(settings) as written:
            drop_slot(written, slot=slot_name(server.server_id))

    with opened(settings) as catalog:
        _has_no_moves(catalog, server.name)
        remove_server(catalog, server.name, and_then=let_go)
