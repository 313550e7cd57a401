"""Watches a cluster from outside: catalog and servers are asked again and again, and one that hangs holds nobody up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Final, Self

from shardkit.catalog.loads import Load, lately, lately_took
from shardkit.catalog.rows import load_map, newest_map
from shardkit.core.pulse import HotTenant, MigrationPulse, MovePulse, Pulse, ServerPulse, ShardPulse, forecast_s, with_rates
from shardkit.core.shardmap import Server, ShardMap
from shardkit.db.connect import connect_admin, lost
from shardkit.db.pulse import ask_catalog, ask_server, blank, connect_watcher
from shardkit.errors import CatalogUnavailableError, ServerDownError, ShardKitError
from shardkit.settings import Settings

PATIENCE_S: Final = 2.0
"""How long a look waits for a server; one that does not answer in time is shown as it was."""

LATELY_S: Final = 60.0
HOT: Final = 12
CacheInfo = Callable[[], Mapping[str, Any]]


class PulseWatch:
    """Takes the pulse of a cluster, over connections of its own: one to the catalog, one to each server."""

    def __init__(self, settings: Settings, *, cache: CacheInfo | None = None) -> None:
        self._settings, self._cache = settings, cache
        self._map: ShardMap | None = None
        self._catalog: Any = None
        self._connections: dict[Server, Any] = {}
        self._asked: dict[str, Future[ServerPulse]] = {}
        self._known: dict[str, ServerPulse] = {}
        self._last: Pulse | None = None
        self._pool = ThreadPoolExecutor(32, thread_name_prefix="shardkit-pulse")
        self._lock = threading.Lock()

    def take(self) -> Pulse:
        """The cluster now. Raises CatalogUnavailableError, NotInitializedError; a server's trouble is part of the answer."""
        with self._lock:
            try:
                moves, migration, load, p99_s = self._ask_catalog()
            except ServerDownError as exc:
                self._catalog = None
                raise CatalogUnavailableError(str(exc.args[0])) from exc
            found = self._map
            assert found is not None  # the catalog was asked
            pulse = Pulse(
                at_s=time.time(),
                cluster=str(found.cluster_id),
                version=found.version,
                shard_count=found.shard_count,
                servers=_with_load(self._ask_servers(found), load, p99_s),
                moves=tuple(_move(row) for row in moves),
                migration=MigrationPulse(**migration) if migration else None,
                cache=self._cache() if self._cache else {},
                hot=tuple(HotTenant(str(hot.tenant), hot.shard, hot.units / load.window_s) for hot in load.tenants),
            )
            self._last = with_rates(pulse, self._last)
            return self._last

    def close(self) -> None:
        """Close the connections."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        for connection in (self._catalog, *self._connections.values()):
            if connection is not None:
                connection.close()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def _ask_catalog(self) -> Any:
        if self._catalog is None or self._catalog.closed:
            self._catalog = connect_admin(self._settings.catalog_url, self._settings)
        with lost(self._catalog, "the catalog"):
            self._map = load_map(self._catalog) if self._map is None else newest_map(self._catalog, self._map)
            load = lately(self._catalog, tenant_type=self._map.tenant_type, since_s=LATELY_S, most=HOT)
            took = lately_took(self._catalog, since_s=LATELY_S)
            return *ask_catalog(self._catalog), load, took.p99_s()

    def _ask_servers(self, shardmap: ShardMap) -> tuple[ServerPulse, ...]:
        for name, server in shardmap.servers.items():
            if (running := self._asked.get(name)) is None or running.done():
                self._asked[name] = self._pool.submit(self._ask, server, shardmap)
        deadline = time.monotonic() + PATIENCE_S
        return tuple(self._answer(server, shardmap, deadline) for server in shardmap.servers.values())

    def _answer(self, server: Server, shardmap: ShardMap, deadline: float) -> ServerPulse:
        try:
            found = self._asked[server.name].result(timeout=max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            known = self._known.get(server.name)
            return blank(server, shardmap, "it did not answer in time" + (", and did before" if known else ""))
        except ShardKitError as exc:
            return blank(server, shardmap, str(exc.args[0]).partition(";")[0])
        self._known[server.name] = found
        return found

    def _ask(self, server: Server, shardmap: ShardMap) -> ServerPulse:
        known = self._connections.pop(server, None)
        if known is not None and not known.closed:
            try:
                found = ask_server(known, server, shardmap)
            except ServerDownError:  # it may have died unseen; a new one knows
                known.close()
            else:
                self._connections[server] = known
                return found
        connection = connect_watcher(server, shardmap, self._settings)
        try:
            found = ask_server(connection, server, shardmap)
        except BaseException:
            connection.close()
            raise
        self._connections[server] = connection
        return found


def _with_load(servers: tuple[ServerPulse, ...], load: Load, p99_s: Mapping[int, float]) -> tuple[ServerPulse, ...]:
    """*servers*, with what programs did in each shard and how fast; nothing is said where no program has told anything."""
    if not load.total:
        return servers

    def loaded(one: ShardPulse) -> ShardPulse:
        slow_s = p99_s.get(one.shard)
        return replace(
            one,
            units_per_s=load.shards.get(one.shard, 0) / load.window_s,
            p99_ms=None if slow_s is None else slow_s * 1000,
        )

    return tuple(replace(server, shards=tuple(map(loaded, server.shards))) for server in servers)


def take_pulse(settings: Settings) -> Pulse:
    """The cluster now, by connections that are closed again."""
    with PulseWatch(settings) as watch:
        return watch.take()


def _move(row: Any) -> MovePulse:
    id_, shard, source, target, step, ended, problem, tenant, facts, held, idle_s, age_s = row
    progress = facts.get("progress") or {}
    if progress.get("step") != step:
        progress = {}
    done, total = int(progress.get("done", 0)), int(progress.get("total", 0))
    return MovePulse(
        id=id_,
        shard=shard,
        source=source,
        target=target,
        step=step,
        ended=ended,
        held=held,
        idle_s=idle_s,
        age_s=age_s,
        problem=problem,
        tenant=tenant,
        done=done,
        total=total,
        lag_ms=progress.get("lag_ms"),
        note=str(progress.get("note", "")),
        forecast_s=forecast_s(done, total, since_s=float(progress.get("since_s", 0.0))),
        stall_ms=facts.get("stall_ms"),
    )
