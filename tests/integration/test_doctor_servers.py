"""The doctor finds servers that would not keep their word, or have no room; each fault is planted on real servers."""

from __future__ import annotations

import dataclasses
import re

import pytest
import redis
from doctorlab import found, only
from fleet import fleet_on
from psycopg import sql
from sqlalchemy.engine import make_url
from standby import make_standby

from shardkit import run_local
from shardkit.catalog.changes import set_replicas
from shardkit.doctor import diagnose
from tests.faults.pooler import LOGIN, needs_pgbouncer, pgbouncer

POOR = {"wal_level": "replica", "max_locks_per_transaction": "10", "max_prepared_transactions": "0", "max_connections": "40"}


@pytest.fixture(scope="module")
def poor():
    """A cluster of one server with settings that somebody did not think about."""
    with run_local(servers=1, redis=True, trust=True, fast=True, settings=POOR) as cluster:
        with fleet_on(cluster, shard_count=4) as fleet:
            yield cluster, fleet


def test_settings_without_which_things_do_not_work(poor):
    _, fleet = poor
    texts = {what for _, where, what in found(fleet, "settings") if where == "pg1"}
    assert {text.split(":")[0] for text in texts} == {"wal_level is replica", "max_prepared_transactions is 0"}


def test_a_lock_table_that_is_too_small(poor):
    _, fleet = poor
    before = found(fleet, "locks")
    assert before == []  # four shards are few
    assert "max_locks_per_transaction = 10" in found(fleet, "locks", settings={"fan_out_connections": 100})[0][2]


def test_budgets_that_do_not_fit(poor):
    _, fleet = poor
    assert found(fleet, "connections", settings={"connection_budget": 30}) == []
    text = found(fleet, "connections", settings={"connection_budget": 38})[0][2]
    assert text.startswith("1 programs may hold 38 connections, and it has room for 37")


def test_a_server_that_may_forget(poor):
    _, fleet = poor
    texts = [what for _, where, what in found(fleet, "durability") if where == "pg1"]
    assert [text.split(":")[0] for text in texts] == ["fsync is off", "full_page_writes is off"]
    with fleet.admin("pg1") as connection:
        connection.execute("ALTER ROLE shardkit_app SET synchronous_commit = off")
        try:
            assert any("weakened for role shardkit_app" in what for _, _, what in found(fleet, "durability"))
        finally:
            connection.execute("ALTER ROLE shardkit_app RESET synchronous_commit")


def test_a_connection_that_grows_too_big(poor):
    _, fleet = poor
    assert found(fleet, "memory") == []
    assert "touched all" in found(fleet, "memory", backend_bytes=1 << 20)[0][2]


def set_clock(fleet, server, by):
    """Give a database a clock of its own, which every session finds before PostgreSQL's."""
    with fleet.admin(server) as connection:
        connection.execute("CREATE SCHEMA IF NOT EXISTS other_time")
        connection.execute(
            sql.SQL(
                "CREATE OR REPLACE FUNCTION other_time.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS "
                "$$ SELECT pg_catalog.clock_timestamp() + (" + by + ")::interval $$"
            )
        )
        (database,) = connection.execute("SELECT current_database()").fetchone()
        path = sql.SQL("ALTER DATABASE {} SET search_path = other_time, pg_catalog, public")
        connection.execute(path.format(sql.Identifier(database)))


def test_a_clock_that_is_wrong(poor):
    _, fleet = poor
    assert found(fleet, "clocks") == []
    set_clock(fleet, "pg1", "'-3 s'")
    assert found(fleet, "clocks")[0][2].startswith("its clock is 3.0 s behind this machine's")
    set_clock(fleet, "pg1", "'90 s'")
    assert found(fleet, "clocks")[0][2].startswith("its clock is 90.0 s ahead of this machine's")
    set_clock(fleet, "pg1", "'0 s'")
    assert found(fleet, "clocks") == []


def test_a_redis_that_forgets_markers(poor):
    cluster, fleet = poor
    with redis.Redis.from_url(cluster.redis_url) as client:
        assert found(fleet, "redis", settings={"redis_url": cluster.redis_url}) == []
        client.config_set("maxmemory", "100mb")
        client.config_set("maxmemory-policy", "volatile-lru")
        assert "volatile-lru may evict" in only(found(fleet, "redis", settings={"redis_url": cluster.redis_url}))
    gone = {"redis_url": "redis://127.0.0.1:1/0"}
    assert "does not answer" in only(found(fleet, "redis", settings=gone))


def test_a_server_that_is_down_or_another_one(poor):
    _, fleet = poor
    nowhere = {"servers": {"pg1": "postgresql://postgres@127.0.0.1:1/nowhere"}}
    findings = found(fleet, "servers", "schemas", settings=nowhere)
    assert [where for _, where, what in findings if "does not answer" in what] == ["pg1"]
    assert not [one for one in findings if one[:2] == ("schemas", "pg1")]  # of one that is silent nothing is claimed
    other = {"servers": {"pg1": fleet.servers["pg2"]}}
    assert only(found(fleet, "servers", settings=other)) == "the database behind its DSN is not this server of this cluster"


@needs_pgbouncer
def test_a_pooler_nobody_named(poor):
    _, fleet = poor
    with pgbouncer(fleet.servers["pg1"]) as at:
        through = {"pg1": at(make_url(fleet.servers["pg1"]).username)}
        assert found(fleet, "pooler", settings={"servers": through})[0][1] == "pg1"
        assert found(fleet, "pooler", settings={"servers": through, "pooler": "pgbouncer-transaction"}) == []
        assert LOGIN not in through["pg1"]


@pytest.fixture(scope="module")
def replicated():
    """Two servers, the second with a standby that its map knows."""
    with run_local(servers=2, redis=False, trust=True, fast=True) as cluster, fleet_on(cluster, shard_count=4) as fleet:
        standby = make_standby(cluster, of="pg2", name="pg2b")
        with fleet.admin() as catalog:
            set_replicas(catalog, "pg2", [standby.url_of(make_url(fleet.servers["pg2"]).database)])
        yield fleet, standby


def of_pg2(fleet):
    return [what for _, where, what in found(fleet, "standby") if where == "pg2"]


def test_servers_whose_failover_loses_what_was_acknowledged(replicated, eventually):
    fleet, _ = replicated
    texts = {where: what for _, where, what in found(fleet, "standby")}
    assert texts["pg1"].startswith("it has no standby: acknowledged writes are lost at a failover, or with its disk")
    assert texts["pg2"].startswith("it has 1 standbys, none of them synchronous")
    with fleet.admin("pg2") as connection:
        connection.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        connection.execute("SELECT pg_reload_conf()")
        try:
            eventually(lambda: not of_pg2(fleet))
        finally:
            connection.execute("ALTER SYSTEM RESET synchronous_standby_names")
            connection.execute("SELECT pg_reload_conf()")
    eventually(lambda: of_pg2(fleet))


def test_an_asynchronous_standby_whose_clock_is_behind(replicated, eventually):
    fleet, standby = replicated
    assert len(of_pg2(fleet)) == 1
    set_clock(fleet, "pg2", "CASE WHEN pg_is_in_recovery() THEN '-2 s' ELSE '0 s' END")
    eventually(lambda: standby.caught_up_with(fleet.servers["pg2"]))
    try:
        says = "its clock is (19|20)\\d\\d ms behind: after a failover ids could be issued again"
        assert [text for text in of_pg2(fleet) if re.search(says, text)], of_pg2(fleet)
    finally:
        set_clock(fleet, "pg2", "'0 s'")
        eventually(lambda: standby.caught_up_with(fleet.servers["pg2"]))
    assert len(of_pg2(fleet)) == 1


def test_a_replica_that_is_no_copy_or_is_gone(replicated):
    fleet, _ = replicated
    replicas = fleet.map.servers["pg2"].replicas
    assert replicas == ()  # of the time before they were set
    before = diagnose(fleet.settings(), checks=["standby"]).facts.map.servers["pg2"].replicas
    with fleet.admin() as catalog:
        for dsn, says in ((fleet.servers["pg1"], "a copy of another database"), (fleet.servers["pg2"], "it is no standby")):
            set_replicas(catalog, "pg2", [dsn])
            assert [text for text in of_pg2(fleet) if says in text]
        set_replicas(catalog, "pg2", ["host=127.0.0.1 port=1"])
        assert [text for text in of_pg2(fleet) if "does not answer" in text]
        set_replicas(catalog, "pg2", before)


def test_facts_are_values(poor):
    _, fleet = poor
    facts = diagnose(fleet.settings(), checks=["servers"]).facts
    with pytest.raises(dataclasses.FrozenInstanceError):
        facts.moves = ()
