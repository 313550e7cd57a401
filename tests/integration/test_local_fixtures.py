"""The fixtures users get: real servers, and databases of their own."""

from __future__ import annotations

import contextlib

import psycopg
import pytest

from shardkit.testing import fresh_databases


def databases_of(cluster):
    with psycopg.connect(cluster.servers[0].url) as connection:
        return {name for (name,) in connection.execute("SELECT datname FROM pg_database")}


def test_fresh_databases_are_spread_over_the_servers_and_empty(local_cluster, shardkit_databases):
    made = shardkit_databases(3)
    assert list(made.servers) == ["pg1", "pg2", "pg3"]
    places = set()
    for url in [*made.servers.values(), made.catalog_url]:
        with psycopg.connect(url) as connection:
            count = connection.execute("SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace")
            assert count.fetchone() == (0,)
            places.add(connection.info.port)
    assert len(places) == len(local_cluster.servers) == 2


def test_two_sets_do_not_meet(shardkit_databases):
    one, two = shardkit_databases(1), shardkit_databases(1)
    with psycopg.connect(one.servers["pg1"], autocommit=True) as connection:
        connection.execute("CREATE TABLE only_here ()")
    with psycopg.connect(two.servers["pg1"]) as connection:
        assert connection.execute("SELECT to_regclass('only_here')").fetchone() == (None,)


def test_databases_go_even_while_used_and_after_an_error(local_cluster):
    before = databases_of(local_cluster)
    user = None
    with contextlib.suppress(ZeroDivisionError), fresh_databases(local_cluster.servers, 2) as made:
        user = psycopg.connect(made.catalog_url)
        raise ZeroDivisionError
    assert databases_of(local_cluster) == before
    with pytest.raises(psycopg.OperationalError):
        user.execute("SELECT 1")
    user.close()
