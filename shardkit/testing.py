"""Pytest fixtures over real servers, for your own tests: ``pytest_plugins = ["shardkit.testing"]`` in ``conftest.py``.

``local_cluster``       one temporary cluster for the whole session (its size: the ini options ``shardkit_servers`` and
                        ``shardkit_redis``)
``shardkit_databases``  a factory: ``shardkit_databases(3)`` gives three empty databases and one for a catalog, dropped
                        after the test
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from shardkit.local import LocalCluster, run_local
from shardkit.local.databases import FreshDatabases, fresh_databases

__all__ = ["FreshDatabases", "fresh_databases", "local_cluster", "shardkit_databases"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """The size of the session's cluster."""
    parser.addini("shardkit_servers", "PostgreSQL servers of the session's local cluster", default="2")
    parser.addini("shardkit_redis", "whether the session's local cluster has a Redis", type="bool", default=True)


@pytest.fixture(scope="session")
def local_cluster(pytestconfig: pytest.Config) -> Iterator[LocalCluster]:
    """Real servers for the whole session: no passwords, and fast rather than safe in a power cut."""
    servers, redis = int(pytestconfig.getini("shardkit_servers")), bool(pytestconfig.getini("shardkit_redis"))
    with run_local(servers=servers, redis=redis, trust=True, fast=True) as cluster:
        yield cluster


@pytest.fixture
def shardkit_databases(local_cluster: LocalCluster) -> Iterator[Callable[[int], FreshDatabases]]:
    """Makes empty databases on the session's servers: ``shardkit_databases(n).servers["pg1"]`` is an address."""
    with contextlib.ExitStack() as made:
        yield lambda count: made.enter_context(fresh_databases(local_cluster.servers, count))
