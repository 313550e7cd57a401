"""From tenant to leg: look-ups in the map in memory, remembered until the map changes, and the way on after a fence."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from uuid import UUID

from sqlalchemy.engine import Engine

from shardkit.catalog.loads import LoadCount
from shardkit.catalog.promotion import after_promotion
from shardkit.catalog.watch import MapWatch
from shardkit.core.hashing import TenantKey
from shardkit.core.names import CATALOG_SERVER, GLOBAL_SCHEMA
from shardkit.core.shardmap import Route, Server, ShardMap
from shardkit.core.tally import KitStats, PoolStats, Tally
from shardkit.db.connect import is_closed
from shardkit.db.engines import Engines
from shardkit.db.leg import Leg, opening_for
from shardkit.db.lineage import Lineage
from shardkit.db.opening import Opening
from shardkit.db.replicas import ReplicaWatch
from shardkit.db.settle import settle
from shardkit.errors import CatalogError, CommitUnknownError, NoTenantError, Outcome, ShardMovedError
from shardkit.settings import Settings

log = logging.getLogger("shardkit.catalog")
FLIP_SOON_S = 0.02
"""How soon the map usually follows a fence (measured: 3 to 8 ms). Asking the server instead costs a connection, and as much."""
_REMEMBERED = 65_536


class Router:
    """Routes tenants by the watch's map; ``engines`` has a pool for each server."""

    def __init__(self, settings: Settings, *, asyncio: bool = False, follow: bool = True) -> None:
        self._settings = settings
        self.watch = MapWatch(settings, follow=follow)
        self.tally = Tally()
        lineage = Lineage(self._promoted)
        self.engines = Engines(settings, cluster_id=self.map.cluster_id, asyncio=asyncio, lineage=lineage)
        self.replicas = ReplicaWatch(settings, cluster_id=self.map.cluster_id, lineage=lineage)
        self.watch.on_change(lineage.learn)
        self.watch.on_change(self.engines.keep)
        self.load = LoadCount(settings)
        self._seen = self.load.seen
        self._kind: type = {"str": str, "int": int}[self.map.tenant_type]
        self._memo = _Memo(self.map)

    @property
    def map(self) -> ShardMap:
        """The map in memory."""
        return self.watch.map

    @property
    def cluster_id(self) -> UUID:
        """Whose map it is."""
        return self.map.cluster_id

    def locate(self, tenant: TenantKey) -> Route:
        """Route of *tenant*; for one that was asked for lately, a dictionary's look-up."""
        memo = self._memo
        if memo.map is self.watch.map and type(tenant) is self._kind:
            try:
                return memo.routes[tenant]
            except KeyError:
                pass
        return self._look_up(tenant)

    def _look_up(self, tenant: TenantKey) -> Route:
        memo = self._memo_of_now()
        route = memo.map.locate(tenant)
        if len(memo.routes) >= _REMEMBERED:
            memo.routes.clear()
        memo.routes[tenant] = route
        return route

    def _memo_of_now(self) -> _Memo:
        memo = self._memo
        if memo.map is not self.watch.map:
            memo = self._memo = _Memo(self.watch.map)
        return memo

    def set_out(self, tenant: TenantKey | None, shard: int | None) -> tuple[Leg, Engine]:
        """Leg and engine of a unit of work that begins now."""
        if tenant is not None:
            route = self.locate(tenant)
        elif shard is not None:
            route = self._memo_of_now().map.route(shard)
        else:
            raise NoTenantError
        memo = self._memo
        found = memo.legs.get(route)
        if found is None:
            if len(memo.legs) >= _REMEMBERED:
                memo.legs.clear()
            server, engine = memo.map.server(route.server), self._engine(memo, route)
            leg = self._leg(route, server)
            found = memo.legs[route] = leg, engine
        self._seen(route)
        return found

    def onward(self, leg: Leg) -> Leg | None:
        """The leg at its shard's new epoch, waiting for the map if need be; None if the shard has not moved.

        Raises ShardMovedError, with nothing done, where it moved and no map said in time where to.
        """
        route = leg.route
        self.tally.fences += 1

        def moved(found: ShardMap) -> bool:
            new = _again(found, route)
            return (new.shard, new.epoch) != (route.shard, route.epoch)

        if not moved(self.map) and not self.watch.told(moved, timeout_s=FLIP_SOON_S):
            self._ask()
            if not moved(self.map) and not is_closed(
                self.map.server(route.server),
                self._settings,
                cluster_id=self.cluster_id,
                schema=route.schema,
                lineage=self.engines.lineage,
            ):
                return None
        found = self.watch.wait_for(moved, timeout_s=self._settings.move_wait_s)
        if found is None:
            raise ShardMovedError(
                f"shard {route.shard} is being moved: its schema {route.schema} is closed and the map does not name a new one "
                f"after {self._settings.move_wait_s:g} s; nothing took effect, run the unit of work again"
            )
        new = _again(found, route)
        return self._leg(new, found.server(new.server), was=leg.was or route.schema)

    def _ask(self) -> None:
        try:
            self.watch.refresh()
        except CatalogError as exc:  # the server knows better than the catalog whether the shard is still there
            log.warning("a shard may have moved, and %s", exc)

    def replica_engine(self, base: Engine, schema: str) -> Engine:
        """The engine *base* of a replica, with *schema* translated in."""
        memo = self._memo_of_now()
        engine = memo.replica_engines.get((base, schema))
        if engine is None:
            engine = memo.replica_engines[base, schema] = base.execution_options(schema_translate_map={None: schema})
        return engine

    def global_leg(self) -> tuple[Leg, Engine]:
        """Leg and engine of the one place where global tables live: a schema beside the catalog's own."""
        server = Server(CATALOG_SERVER, self._settings.catalog_url, self.cluster_id)
        route = Route(None, -1, GLOBAL_SCHEMA, CATALOG_SERVER, 0)
        engine = self.engines.of(server).execution_options(schema_translate_map={None: GLOBAL_SCHEMA})
        return Leg(route, engine, Opening(GLOBAL_SCHEMA.encode()), _Fixed()), engine

    def settle(self, error: CommitUnknownError) -> Outcome:
        """What became of a COMMIT whose answer was lost, if its server can tell."""
        self.tally.unknown += 1
        server = self.map.server(error.server or "")
        return settle(error, server, self._settings, cluster_id=self.cluster_id, lineage=self.engines.lineage)

    def stats(self, cache: Mapping[str, int]) -> KitStats:
        """What this process says of itself, with the counters of its *cache*. No I/O."""
        pools = {
            name: PoolStats(pool.size(), pool.checkedout(), pool.checkedin(), pool.waiting)
            for name, pool in self.engines.pools().items()
        }
        return KitStats(self.map.version, self.tally.fences, self.tally.retries, self.tally.unknown, pools, cache)

    def _promoted(self, server: Server, timeline: int) -> None:
        """A server was seen on a timeline the map does not have: tell the others, without holding anybody up."""
        threading.Thread(
            target=after_promotion, args=(self._settings, self.map, server, timeline), name="shardkit-promoted", daemon=True
        ).start()

    def close(self) -> None:
        """Stop watching the map and the replicas."""
        self.load.close()
        self.replicas.close()
        self.watch.close()

    def _leg(self, route: Route, server: Server, *, was: str | None = None) -> Leg:
        engine, replicated = self.engines.of(server), bool(server.replicas)
        return Leg(route, engine, opening_for(route), self, was=was, replicated=replicated, took=self.load.took)

    def _engine(self, memo: _Memo, route: Route) -> Engine:
        engine = memo.engines.get(route.schema)
        if engine is None:
            base = self.engines.of(memo.map.server(route.server))
            engine = memo.engines[route.schema] = base.execution_options(schema_translate_map={None: route.schema})
        return engine


class _Fixed:
    """The guide of what never moves."""

    def onward(self, leg: Leg) -> None:
        """It does not."""
        del leg


class _Memo:
    """What was looked up in one map; it goes with the map."""

    __slots__ = ("engines", "legs", "map", "replica_engines", "routes")

    def __init__(self, shardmap: ShardMap) -> None:
        self.map = shardmap
        self.routes: dict[TenantKey, Route] = {}
        self.legs: dict[Route, tuple[Leg, Engine]] = {}
        self.engines: dict[str, Engine] = {}
        self.replica_engines: dict[tuple[Engine, str], Engine] = {}


def _again(found: ShardMap, route: Route) -> Route:
    """The same request in another map: a tenant may have been pinned elsewhere meanwhile."""
    return found.route(route.shard) if route.tenant is None else found.locate(route.tenant)
