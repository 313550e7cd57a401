"""Prometheus: what this process counts (``KitCollector``), and, from one place, what the cluster says (``ClusterCollector``).

    from prometheus_client import REGISTRY
    REGISTRY.register(KitCollector(kit))

A scrape of a KitCollector asks nobody: it reads counters. docs/reference/metrics.md lists every metric.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from shardkit._sync.kit import ShardKit
from shardkit.catalog.pulse import take_pulse
from shardkit.contrib.identify import Kit
from shardkit.core.pulse import Pulse
from shardkit.errors import ShardKitError

CACHE_READS: Final = {"hits": "hit", "misses": "miss"}


class KitCollector(Collector):
    """The metrics of one kit, labelled with *name* where a process has several."""

    def __init__(self, kit: Kit, *, name: str = "") -> None:
        self._kit, self._name = kit, name

    def collect(self) -> Iterator[Metric]:
        """Every metric, from counters in memory."""
        stats, name = self._kit.stats(), self._name
        yield _gauge("shardkit_map_version", "Version of the shard map in memory.", {(name,): stats.map_version}, "kit")
        for metric, about, count in (
            ("shardkit_fences", "Units of work that met a closed shard and were led on.", stats.fences),
            ("shardkit_retries", "Units of work that kit.run did again.", stats.retries),
            ("shardkit_unknown_commits", "COMMITs of kit.run whose answer was lost.", stats.unknown_commits),
        ):
            yield _counter(metric, about, {(name,): count}, "kit")
        for part, about in (
            ("size", "Connections a pool may hold."),
            ("in_use", "Connections in use."),
            ("idle", "Connections that wait for work."),
            ("waiting", "Callers that wait for a connection."),
        ):
            values = {(name, server): getattr(pool, part) for server, pool in stats.pools.items()}
            yield _gauge(f"shardkit_pool_{part}", about, values, "kit", "server")
        reads = {(name, result): stats.cache[counter] for counter, result in CACHE_READS.items()}
        yield _counter("shardkit_cache_reads", "Reads through the cache.", reads, "kit", "result")
        breaker = {(name,): stats.cache["breaker_open"]}
        yield _gauge("shardkit_cache_breaker_open", "Whether Redis is not asked at present.", breaker, "kit")
        apart = {*CACHE_READS, "breaker_open"}
        others = {(name, what): count for what, count in stats.cache.items() if what not in apart}
        yield _counter(
            "shardkit_cache_events", "What else happened in the cache; see kit.cache.stats().", others, "kit", "event"
        )


class ClusterCollector(Collector):
    """The metrics of a whole cluster: asks the catalog and every server at each scrape, so register it in one process only.

    With *outbox* the effects that wait are counted as well, by a fan-out over all shards.
    """

    def __init__(self, kit: ShardKit, *, outbox: bool = False, pulse: Callable[[], Pulse] | None = None) -> None:
        self._kit, self._outbox = kit, outbox
        self._pulse = pulse or (lambda: take_pulse(kit.settings))

    def describe(self) -> list[Metric]:
        """Nothing: registering must not ask the servers."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Every metric; where the catalog does not answer only ``shardkit_catalog_up`` 0."""
        try:
            pulse = self._pulse()
        except ShardKitError:
            yield _gauge("shardkit_catalog_up", "Whether the catalog answers.", {(): 0})
            return
        yield _gauge("shardkit_catalog_up", "Whether the catalog answers.", {(): 1})
        yield _gauge("shardkit_catalog_map_version", "Version of the shard map in the catalog.", {(): pulse.version})
        servers = {server.name: server for server in pulse.servers}
        for metric, about, values in (
            ("shardkit_server_up", "Whether a server answers.", {n: int(s.problem is None) for n, s in servers.items()}),
            ("shardkit_server_shards", "Shards the map places on a server.", {n: s.placed for n, s in servers.items()}),
            ("shardkit_server_bytes", "Bytes of a server's database.", {n: s.size_bytes for n, s in servers.items()}),
            ("shardkit_server_connections", "Connections to a server.", {n: s.connections for n, s in servers.items()}),
            (
                "shardkit_server_max_connections",
                "Connections a server allows.",
                {n: s.max_connections for n, s in servers.items()},
            ),
        ):
            yield _gauge(metric, about, {(name,): value for name, value in values.items() if value is not None}, "server")
        lag = {(s.name, str(number)): r.lag_bytes for s in pulse.servers for number, r in enumerate(s.standbys, 1)}
        yield _gauge("shardkit_standby_lag_bytes", "Bytes of WAL a standby has not replayed.", lag, "server", "standby")
        yield _gauge(
            "shardkit_moves", "Moves that have not ended, by step.", {(k,): v for k, v in pulse.steps().items()}, "step"
        )
        stuck = sum(move.stuck for move in pulse.moves)
        yield _gauge("shardkit_moves_stuck", "Moves that stopped, or that nobody works on.", {(): stuck})
        lags = {(str(move.id),): move.lag_ms / 1000 for move in pulse.moves if move.lag_ms is not None}
        yield _gauge("shardkit_move_lag_seconds", "How far the target of a move is behind.", lags, "move")
        yield _gauge(
            "shardkit_prepared_transactions", "Prepared transactions.", {(s.name,): s.prepared for s in pulse.servers}, "server"
        )
        yield _gauge(
            "shardkit_slot_retained_bytes",
            "WAL that slots hold back.",
            {(s.name,): s.retained_bytes for s in pulse.servers},
            "server",
        )
        if self._outbox:
            yield from self._effects()

    def _effects(self) -> Iterator[Metric]:
        try:
            lag = self._kit.outbox.lag()
        except ShardKitError:
            return
        yield _gauge("shardkit_outbox_waiting", "Effects on other tenants that wait.", {(): lag.waiting})
        age_s = 0.0 if lag.oldest is None else max(0.0, time.time() - lag.oldest.timestamp())
        yield _gauge("shardkit_outbox_oldest_seconds", "Age of the oldest of them.", {(): age_s})


def _gauge(name: str, about: str, values: Mapping[Any, float], *labels: str) -> Metric:
    metric = GaugeMetricFamily(name, about, labels=labels)
    for key, value in values.items():
        metric.add_metric(list(key), value)
    return metric


def _counter(name: str, about: str, values: Mapping[Any, float], *labels: str) -> Metric:
    metric = CounterMetricFamily(name, about, labels=labels)
    for key, value in values.items():
        metric.add_metric(list(key), value)
    return metric
