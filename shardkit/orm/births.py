"""Finds the shard that has the row of an id: the one it was born in, or one of its family, if tenants were isolated."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from sqlalchemy import column, exists, literal, or_, select, table, text
from sqlalchemy.engine import Engine
from sqlalchemy.util.concurrency import in_greenlet

from shardkit.catalog.router import Router
from shardkit.core.hashing import TenantKey
from shardkit.core.ids import shard_of_id
from shardkit.core.shardmap import Route
from shardkit.db.leg import Leg
from shardkit.orm.session import RoutedSession

REMEMBERED: Final = 4096
_KEYED = text("""
    SELECT c.relname, a.attname FROM pg_class c JOIN pg_index i ON i.indrelid = c.oid AND i.indisunique AND i.indnkeyatts = 1
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = i.indkey[0] AND a.atttypid = 'bigint'::regtype
    WHERE c.relnamespace = to_regnamespace(current_schema()) AND c.relkind IN ('r', 'p') AND c.relname NOT LIKE 'shardkit%'
    ORDER BY 1, 2""")


class Births:
    """Looks ids up in the shards of a router's map. Ids are unique over all tables of a shard, so no table has to be named."""

    def __init__(self, router: Router, *, asyncio: bool) -> None:
        self.router, self._asyncio = router, asyncio
        self._keyed: dict[str, list[tuple[str, str]]] = {}

    def guide(self, key: int) -> IdGuide:
        """The guide of an operator's session that goes to where the row of id *key* is."""
        return IdGuide(self, key)

    def shard_of(self, key: int) -> int:
        """The shard that has the row of id *key*; that of its birth if none has. One question to each of a few shards."""
        born = shard_of_id(key)
        family = self.router.map.family(born)
        if len(family) == 1 or (self._asyncio and not in_greenlet()):
            return born
        return next((shard for shard in family if self._has(shard, key)), born)

    def route(self, key: int) -> Route:
        """Where the row of id *key* is."""
        return self.router.map.route(self.shard_of(key))

    def _has(self, shard: int, key: int) -> bool:
        with RoutedSession(guide=self.router, shard=shard) as session:
            schema = session.route.schema
            keyed = self._keyed.get(schema)
            if keyed is None:
                if len(self._keyed) >= REMEMBERED:
                    self._keyed.clear()
                keyed = self._keyed[schema] = [(name, key_column) for name, key_column in session.execute(_KEYED)]
            there = [_with(table(name, column(at)), at, key) for name, at in keyed]
            return bool(there) and session.scalar(select(literal(1)).where(or_(*there))) is not None


def _with(rows: Any, at: str, key: int) -> Any:
    return exists(select(literal(1)).select_from(rows).where(rows.c[at] == key))


class IdGuide:
    """Sets out for the shard that has the row of one id, and looks for it again where that shard has moved meanwhile."""

    __slots__ = ("_births", "_key")

    def __init__(self, births: Births, key: int) -> None:
        self._births, self._key = births, key

    def set_out(self, tenant: TenantKey | None, shard: int | None) -> tuple[Leg, Engine]:
        """Leg and engine of a unit of work that begins now."""
        del tenant, shard
        leg, engine = self._births.router.set_out(None, self._births.shard_of(self._key))
        return replace(leg, guide=self), engine

    def onward(self, leg: Leg) -> Leg | None:
        """The leg to where the row is by now; None if its shard has not moved."""
        if self._births.router.onward(leg) is None:
            return None
        there, _ = self.set_out(None, None)
        return replace(there, was=leg.was or leg.route.schema)
