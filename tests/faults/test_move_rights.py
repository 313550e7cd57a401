"""A login with no more rights than the documentation names carries shards, there and back, and leaves nothing."""

from __future__ import annotations

import psycopg
import pytest
from locallab import drop_subscriptions
from psycopg import sql
from psycopg.conninfo import make_conninfo
from sqlalchemy import MetaData
from sqlalchemy.orm import Mapped, mapped_column

from shardkit import Settings, ShardedBase
from shardkit.core import moving as m
from shardkit.db.connect import conninfo
from shardkit.local import run_local
from shardkit.local.databases import FreshDatabases, fresh_databases
from shardkit.move.ends import End
from shardkit.move.forecast import forecast
from shardkit.schema.bootstrap import initialize
from shardkit.schema.shared import make_shared_tables
from tests.faults.lab import Load
from tests.faults.movelab import Lab

PASSWORD = "not a secret"
RIGHTS = "GRANT pg_create_subscription, pg_signal_backend, pg_read_all_stats, pg_read_all_settings TO carrier"


@pytest.fixture(scope="module")
def cluster():
    with run_local(servers=2, redis=False, fast=True) as running:
        yield running


@pytest.fixture
def databases(cluster):
    """Databases named with the login ``carrier``, which is no superuser and has to give its password."""
    with fresh_databases(cluster.servers, 2) as made:
        for url in (*made.servers.values(), made.catalog_url):
            with psycopg.connect(url, autocommit=True) as connection:
                if connection.info.server_version < 160_000:
                    pytest.skip("PostgreSQL 15 lets superusers alone make subscriptions (test_move_versions: it is refused)")
                if connection.execute("SELECT FROM pg_roles WHERE rolname = 'carrier'").fetchone() is None:
                    connection.execute(
                        sql.SQL("CREATE ROLE carrier LOGIN REPLICATION CREATEROLE PASSWORD {}").format(sql.Literal(PASSWORD))
                    )
                    connection.execute(RIGHTS)
                connection.execute("ALTER ROLE carrier CREATEROLE")
                name = sql.Identifier(connection.info.dbname)
                connection.execute(sql.SQL("GRANT CREATE ON DATABASE {} TO carrier").format(name))

        def by_carrier(url):
            return make_conninfo(url, user="carrier", password=PASSWORD)

        named = FreshDatabases(
            servers={name: by_carrier(url) for name, url in made.servers.items()}, catalog_url=by_carrier(made.catalog_url)
        )
        yield made, named


def test_the_least_rights_that_are_documented_carry_a_shard_there_and_back(databases):
    made, named = databases
    lab = Lab(named)  # initialised by it, so it owns the shards
    for url in made.servers.values():
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("ALTER ROLE carrier NOCREATEROLE")  # that was for the start
            (superuser,) = connection.execute("SELECT rolsuper FROM pg_roles WHERE rolname = 'carrier'").fetchone()
            assert not superuser
    with Load(lab) as load:
        load.wait_for(5)
        move = lab.go_on(lab.begin())
        assert move.step is m.Step.SOAK
        load.wait_for(5)
        assert lab.go_on(lab.begin_rollback(move)).step is m.Step.FINISHED
        assert lab.go_on(lab.go_on(lab.begin()), "finish").step is m.Step.FINISHED
        load.wait_for(5)
    assert lab.complaints(load) == []
    lab.kit.close()


def test_servers_that_cannot_reach_each_other_are_found_before_the_copy(databases):
    _, named = databases
    lab = Lab(named)
    shard = 0
    source = lab.kit.map.placement(shard).server
    target = next(name for name in named.servers if name != source)

    def findings(blind):
        """What is found when the servers are told an address of *blind* that leads nowhere; this process knows a better one."""
        ours = make_conninfo(named.servers[blind], hostaddr="127.0.0.1", port=1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                End,
                "conninfo_of_subscription",
                lambda end: ours if end.name == blind else conninfo(end.url, lab.settings),
            )
            return forecast(lab.settings, shard, target).findings

    assert not forecast(lab.settings, shard, target).refused
    (refusal,) = [one for one in findings(source) if "cannot subscribe" in one.what]
    assert refusal.refuses
    assert refusal.what.startswith(f"server '{target}' cannot subscribe to server '{source}': ")
    assert PASSWORD not in refusal.what
    (note,) = [one for one in findings(target) if "cannot subscribe" in one.what]
    assert not note.refuses
    assert "--no-soak" in note.remedy
    lab.kit.close()


class Base(ShardedBase):
    __abstract__ = True
    metadata = MetaData()


class Country(Base):
    __tablename__ = "countries"
    __shardkit__ = {"kind": "reference"}
    code: Mapped[str] = mapped_column(primary_key=True)


class Plan(Base):
    __tablename__ = "plans"
    __shardkit__ = {"kind": "reference"}
    name: Mapped[str] = mapped_column(primary_key=True)


def test_the_same_rights_let_every_server_follow_reference_tables(databases):
    _, named = databases
    settings = Settings(catalog_url=named.catalog_url, servers=named.servers)
    initialize(settings, servers=named.servers, shard_count=2)
    early = MetaData()
    Country.__table__.to_metadata(early)
    make_shared_tables(settings, early)
    try:
        with psycopg.connect(named.catalog_url, autocommit=True) as connection:
            connection.execute("INSERT INTO shardkit_reference.countries VALUES ('PT')")
        make_shared_tables(settings, Base.metadata)
        with psycopg.connect(named.catalog_url, autocommit=True) as connection:
            connection.execute("INSERT INTO shardkit_reference.plans VALUES ('free')")
        make_shared_tables(settings, Base.metadata)  # which returns when all have all
        for url in named.servers.values():
            with psycopg.connect(url, autocommit=True) as connection:
                found = connection.execute("SELECT code, name FROM shardkit_reference.countries, shardkit_reference.plans")
                assert found.fetchall() == [("PT", "free")]
    finally:
        drop_subscriptions(named.servers.values())
