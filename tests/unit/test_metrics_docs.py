"""The dashboard, the alerts and the reference speak of metrics that there are, and the reference of all of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from uuid import UUID

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from shardkit.contrib.prometheus import ClusterCollector, KitCollector
from shardkit.core.pulse import MovePulse, Pulse, ServerPulse, StandbyPulse
from shardkit.core.tally import KitStats, PoolStats
from shardkit.orm.cachestats import CacheStats

DOCS = Path(__file__).parents[2] / "docs" / "reference"
METRIC = re.compile(r"\bshardkit_[a-z_]+\b")
FILES = ["monitoring/grafana.json", "monitoring/alerts.yml", "metrics.md"]


class Outbox:
    def lag(self):
        return SimpleNamespace(waiting=1, oldest=None)


class OneKit:
    outbox = Outbox()

    def stats(self):
        return KitStats(1, 2, 3, 4, {"pg1": PoolStats(10, 1, 2, 3)}, CacheStats(hits=1, misses=2, loads=3).values())


def metrics():
    """Names of every sample that the collectors can give."""
    standby = StandbyPulse("pg1b", "streaming", "async", 10, 0.1)
    counts = {"size_bytes": 1, "connections": 1, "max_connections": 2}
    server = ServerPulse(name="pg1", state="active", weight=1, placed=1, standbys=(standby,), **counts)
    move = MovePulse(
        id=1, shard=1, source="pg1", target="pg2", step="copy", ended=False, held=True, idle_s=0, age_s=1, lag_ms=5.0
    )
    pulse = Pulse(at_s=1.0, cluster=str(UUID(int=1)), version=1, shard_count=1, servers=(server,), moves=(move,))
    registry = CollectorRegistry()
    registry.register(KitCollector(OneKit()))
    registry.register(ClusterCollector(OneKit(), outbox=True, pulse=lambda: pulse))
    text = generate_latest(registry).decode()
    return {line.partition("{")[0].partition(" ")[0] for line in text.splitlines() if line and not line.startswith("#")}


@pytest.mark.parametrize("name", FILES)
def test_every_metric_that_is_named_exists(name):
    named = set(METRIC.findall((DOCS / name).read_text("utf-8")))
    assert named, "it names no metric at all"
    assert not named - metrics()


def test_a_metric_that_is_not_there_is_found():
    assert set(METRIC.findall("sum(shardkit_moves_stuk)")) - metrics() == {"shardkit_moves_stuk"}


def test_the_reference_names_every_metric():
    assert metrics() <= set(METRIC.findall((DOCS / "metrics.md").read_text("utf-8")))


def test_the_dashboard_is_one():
    board = json.loads((DOCS / "monitoring/grafana.json").read_text("utf-8"))
    assert all(panel["targets"] and panel["title"] for panel in board["panels"])
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_the_alerts_say_what_to_do():
    text = (DOCS / "monitoring/alerts.yml").read_text("utf-8")
    assert text.count("- alert: ") == text.count("what_to_do: ") == text.count("severity: ") > 5


def test_the_reference_names_every_logger():
    files = (DOCS.parents[1] / "shardkit").rglob("*.py")
    logger = re.compile(r'getLogger\("(shardkit\.\w+)"\)')
    loggers = {name for file in files for name in logger.findall(file.read_text("utf-8"))}
    documented = (DOCS / "metrics.md").read_text("utf-8")
    assert "shardkit.catalog" in loggers
    assert [name for name in sorted(loggers) if f"`{name}`" not in documented] == []
