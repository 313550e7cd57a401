"""The simulator of `python -m benchmarks year` against a real cluster: the same plan, the same outcome, the same traffic."""

from __future__ import annotations

import re
import tempfile

import psycopg
import pytest
from psycopg import sql
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks import year
from shardkit import Settings, ShardKey, TenantScoped
from shardkit.catalog.changes import flip
from shardkit.catalog.rows import load_map
from shardkit.db.connect import connect_admin
from shardkit.move import rebalance
from shardkit.schema.blueprint import from_metadata
from shardkit.schema.bootstrap import initialize

SHARDS = 8


class Base(DeclarativeBase):
    pass


class Blob(TenantScoped, Base):
    __tablename__ = "blobs"
    id: Mapped[int] = mapped_column(ShardKey, primary_key=True)
    data: Mapped[str]


@pytest.fixture
def uneven(shardkit_databases):
    """Eight shards on three servers, those of the first server much larger than the others."""
    databases = shardkit_databases(3)
    settings = Settings(catalog_url=databases.catalog_url)
    found = initialize(settings, servers=databases.servers, shard_count=SHARDS, blueprint=from_metadata(Base.metadata))
    for name, url in databases.servers.items():
        with psycopg.connect(url, autocommit=True) as connection:
            for shard in found.shards_on(name):
                rows = (100 if name == "pg1" else 10) * (shard + 1)
                schema = sql.Identifier(found.route(shard).schema)
                connection.execute(
                    sql.SQL(
                        "INSERT INTO {}.blobs (id, tenant_id, data) SELECT n, 'a', repeat('x', 1500) "
                        "FROM generate_series(1, {}) n"
                    ).format(schema, sql.Literal(rows))
                )
                connection.execute(sql.SQL("ANALYZE {}.blobs").format(schema))
    return settings


def state(settings):
    with connect_admin(settings.catalog_url, settings) as catalog:
        found = load_map(catalog)
    return found, {shard: place.server for shard, place in found.placements.items()}, rebalance.sizes(settings, found)


def test_the_simulator_plans_what_the_cluster_plans_and_foretells_what_comes_of_it(uneven):
    before, current, sizes = state(uneven)
    foretold = year.rebalance(current, dict.fromkeys(before.servers, 1.0), sizes)
    real = rebalance.make_plan(uneven, by="bytes")
    assert foretold == real
    assert foretold.moves, "nothing to compare: the servers were even"
    done, failed = rebalance.carry_out(uneven, real.moves)
    assert (done, failed) == (len(real.moves), [])
    after, placed, grown = state(uneven)
    assert placed == dict(foretold.placement)
    assert after.version - before.version == len(foretold.moves), (
        "one change of the map for each move, as the traffic is counted"
    )
    held = {name: sum(grown[shard] for shard, server in placed.items() if server == name) for name in after.servers}
    assert held == pytest.approx(dict(foretold.after), rel=0.1)  # a copy is packed a little tighter than its original


def test_a_drain_empties_a_server_in_both(uneven):
    before, current, sizes = state(uneven)
    rebalance.drain(uneven, "pg2")
    foretold = year.rebalance(current, dict.fromkeys(before.servers.keys() - {"pg2"}, 1.0), sizes)
    assert foretold == rebalance.make_plan(uneven, by="bytes")
    assert foretold.after["pg2"] == 0


def test_refresh_traffic_is_what_the_wire_carries(uneven):
    with connect_admin(uneven.catalog_url, uneven) as catalog:
        known = load_map(catalog)
        shard, place = next(iter(known.placements.items()))
        with connect_admin(uneven.catalog_url, uneven) as other:
            flip(other, shard, server=place.server, expected_epoch=place.epoch)
        with tempfile.TemporaryFile("w+b", buffering=0) as trace:
            catalog.pgconn.trace(trace.fileno())
            try:
                found = load_map(catalog, known)
            finally:
                catalog.pgconn.untrace()
            trace.seek(0)
            lines = trace.read().decode("utf-8", "replace")
    assert found.version == known.version + 1
    received = sum(1 + int(size) for size in re.findall(r"\tB\t(\d+)\t", lines))
    assert received > 500
    assert year.refresh_bytes(known.servers.values(), changed=1) == pytest.approx(received, rel=0.05)
