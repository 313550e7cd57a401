"""Tells the cache what others have committed: psql, migrations, programs without shardkit. It follows each server's log.

Every change passes twice at most and never not at all: what a transaction changed is marked before the slot is moved past it.
Rows that shardkit's own sessions wrote come by too, and are recognised by what is stored since.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Column, types

from shardkit._sync.kit import ShardKit
from shardkit.core.lag import lsn_number
from shardkit.core.names import RELAY_SESSION, parse_schema
from shardkit.core.shardmap import Route
from shardkit.db.connect import server_url
from shardkit.errors import ShardKitError
from shardkit.move.ends import End
from shardkit.move.feed import Feed, Row, Truncated
from shardkit.orm.cached import Entity, entity_of

IDLE_S = 0.1


class Relay:
    """Of the servers of *kit*, for the cached *entities*. *warn* is told what cannot be seen."""

    def __init__(self, kit: ShardKit, entities: Iterable[type[Any]], *, warn: Callable[[str], object]) -> None:
        self._kit, self._warn = kit, warn
        self._entities = {entity.table.name: entity for entity in map(entity_of, entities)}
        self._warned: set[str] = set()
        self._feeds: dict[str, Feed] = {}
        self._follow_servers()

    def prepare(self) -> None:
        """Publications and slots where there are none; a slot begins now, so forget what was stored before it.

        A server without shards has nothing to be followed, and its slot would hold the log back for nobody: it is dropped.
        """
        self._follow_servers()
        for server, feed in self._feeds.items():
            here = self._routes(server)
            about = {"schemas": list(here), "tables": list(self._entities)}
            if not here:
                self._let_go(server, feed)
                continue
            made = feed.prepare(**about)
            for table in feed.half_told(**about):
                self._warn_once(
                    f"the old rows of {table} on {server} are not in the log as a whole: a deleted row, or the old value of a "
                    f"key that was changed, may stay in the cache until its time to live ends. In a migration: "
                    f"ALTER TABLE {table} REPLICA IDENTITY FULL"
                )
            if made:
                for route in here.values():
                    self._all_of(route, self._entities)

    def run_once(self) -> int:
        """Pass what is there; the number of keys that were marked."""
        self._kit.refresh()
        return sum(self._pass(server, feed) for server, feed in self._feeds.items() if self._routes(server))

    def run(self, stop: threading.Event) -> None:
        """Until *stop* is set."""
        self.prepare()
        shards = self._kit.map.version
        while not stop.is_set():
            marked = self.run_once()
            if self._kit.map.version != shards:  # a shard came, or its tables did
                shards = self._kit.map.version
                self.prepare()
            if not marked:
                stop.wait(IDLE_S)

    def remove(self) -> None:
        """Drop slots and publications; nothing is followed any more."""
        for feed in self._feeds.values():
            feed.remove()

    def close(self) -> None:
        """Close the connections; the slots stay, and keep the log for the next relay."""
        for feed in self._feeds.values():
            feed.close()

    def _follow_servers(self) -> None:
        kit = self._kit
        for name, server in kit.map.servers.items():
            url, known = server_url(server, kit.settings), self._feeds.get(name)
            if known is None or known.url != url:
                if known is not None:
                    known.close()
                self._feeds[name] = Feed(End(name, url, kit.settings, session=RELAY_SESSION), cluster_id=kit.map.cluster_id)
        for name in self._feeds.keys() - kit.map.servers.keys():  # its slot went when it left
            self._feeds.pop(name).close()

    def _let_go(self, server: str, feed: Feed) -> None:
        try:
            feed.remove()
        except ShardKitError as exc:  # it may be down, which is no reason not to follow the others
            self._warn_once(f"server {server} has no shard to be followed, and what the relay made there stays: {exc}")
        feed.close()

    def _routes(self, server: str) -> Mapping[str, Route]:
        here = (self._kit.map.route(shard) for shard in self._kit.map.placements)
        return {route.schema: route for route in here if route.server == server}

    def _pass(self, server: str, feed: Feed) -> int:
        """What was committed on *server* before this call: one that is always written to must not keep the others waiting."""
        routes, done, until = self._routes(server), 0, feed.position()
        while True:
            events, end, now = feed.peek()
            changed: dict[str, dict[str, int]] = {}
            for event in events:
                route, entity = routes.get(event.schema), self._entities.get(event.table)
                if route is None or entity is None or parse_schema(event.schema) is None:
                    continue  # a copy that nobody reads: its transactions are another server's
                xid = whole_xid(event.xid, now=now)
                if isinstance(event, Truncated):
                    done += self._all_of(route, [event.table], xid=xid)
                else:
                    names = changed.setdefault(event.schema, {})
                    names |= dict.fromkeys(self._names(entity, event), xid)
            for schema, names in changed.items():
                if names:
                    done += self._kit.cache.overtake(routes[schema], names)
            feed.pass_by(end)
            if not events or lsn_number(end) >= until:
                return done

    def _all_of(self, route: Route, tables: Iterable[str], *, xid: int | None = None) -> int:
        names = [name for table in tables for name in self._kit.cache.stored(route, table)]
        if not names:
            return 0
        xid = self._kit.cache.new_xid(route) if xid is None else xid
        return self._kit.cache.overtake(route, dict.fromkeys(names, xid))

    def _names(self, entity: Entity, row: Row) -> Iterator[str]:
        old, new = row.old, row.new
        if old is not None and new is not None and not row.whole:
            old = {column: new[column] if value is None else value for column, value in old.items()}  # the key's columns only
        for values in (old, new):
            if values is None:
                continue
            known: dict[Column[Any], Any] = {c: from_text(c, values.get(c.name)) for c in entity.key_columns}
            if entity.tenant is not None and known[entity.tenant] is None:
                self._warn_once(f"rows were deleted from {row.table} without a word of whose they were; see REPLICA IDENTITY")
            else:
                yield from entity.names_of(known)

    def _warn_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            self._warn(text)


def whole_xid(xid: int, *, now: int) -> int:
    """The 64 bits of a transaction of which the log has the lower half, a while before *now*."""
    found = (now >> 32 << 32) | xid
    return found if found <= now else found - (1 << 32)


def from_text(column: Column[Any], text: str | None) -> Any:
    """A key's value as the program knows it, from PostgreSQL's text."""
    if text is None:
        return None
    kind: Any = column.type
    match kind:
        case types.Boolean():
            return text == "t"
        case types.Enum():
            return kind._object_value_for_elem(text)  # by its name, or as values_callable says
        case types.String():
            return text
        case types.Uuid():
            return UUID(text)
        case types.DateTime():
            return datetime.fromisoformat(text)
        case types.Date():
            return date.fromisoformat(text)
        case types.LargeBinary():
            return bytes.fromhex(text[2:])
        case _:
            return int(text)
