"""A login with no more rights than the documentation names carries shards, there and back, and leaves nothing."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from shardkit.core import moving as m
from shardkit.local import run_local
from shardkit.local.databases import FreshDatabases, fresh_databases
from tests.faults.lab import Load
from tests.faults.movelab import Lab

PASSWORD = "not a secret"
RIGHTS = "GRANT pg_create_subscription, pg_signal_backend, pg_read_all_stats, pg_read_all_settings TO carrier"


@pytest.fixture(scope="module")
def databases():
    """Databases named with the login ``carrier``, which is no superuser and has to give its password."""
    with run_local(servers=2, redis=False, fast=True) as cluster, fresh_databases(cluster.servers, 2) as made:
        for url in (*made.servers.values(), made.catalog_url):
            with psycopg.connect(url, autocommit=True) as connection:
                if connection.info.server_version < 160_000:
                    pytest.skip("PostgreSQL 15 lets superusers alone make subscriptions (test_move_versions: it is refused)")
                if connection.execute("SELECT FROM pg_roles WHERE rolname = 'carrier'").fetchone() is None:
                    connection.execute(
                        sql.SQL("CREATE ROLE carrier LOGIN REPLICATION CREATEROLE PASSWORD {}").format(sql.Literal(PASSWORD))
                    )
                    connection.execute(RIGHTS)
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
