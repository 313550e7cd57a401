"""One small cluster for the tests of this application, and browsers that are only HTTP clients."""

from __future__ import annotations

import threading
import time

import pytest
from photoslab import Visitor

from photos import create_app
from photos.accounts import Limits
from photos.cluster import make_cluster
from photos.effects import handlers
from shardkit import Settings
from shardkit.local.databases import fresh_databases

QUICK = "scrypt:1024:8:1"


@pytest.fixture(scope="session")
def databases(local_cluster):
    """Sixteen shards on two servers."""
    with fresh_databases(local_cluster.servers, 2) as databases:
        make_cluster(Settings(catalog_url=databases.catalog_url), databases.servers, shards=16)
        yield databases


@pytest.fixture(scope="session")
def cluster(local_cluster, databases):
    """Settings of the cluster, with a cache."""
    return {
        "SHARDKIT_CATALOG_URL": databases.catalog_url,
        "SHARDKIT_REDIS_URL": local_cluster.redis_url,
        # A busy machine is neither a server nor a Redis in trouble.
        "SHARDKIT_POOL_TIMEOUT_S": 60.0,
        "SHARDKIT_CONNECT_TIMEOUT_S": 60.0,
        "SHARDKIT_CALL_TIMEOUT_S": 120.0,
        "SHARDKIT_CACHE_TIMEOUT_S": 60.0,
    }


@pytest.fixture(scope="session")
def configured(cluster, tmp_path_factory):
    """Configuration of an application of these tests."""
    return {
        **cluster,
        "SECRET_KEY": "of these tests",
        "MEDIA": tmp_path_factory.mktemp("media"),
        "PASSWORD_METHOD": QUICK,
        "SESSION_COOKIE_SECURE": False,
        "LOGIN_LIMITS": Limits(address=10_000),
        "FAMOUS_FROM": 5,
    }


@pytest.fixture(scope="session")
def app(configured):
    app = create_app(**configured)
    yield app
    app.extensions["shardkit"].close()


@pytest.fixture(params=["cached", "no Redis"])
def both(request, app, configured):
    """The application with a cache, and without."""
    if request.param == "cached":
        yield app
        return
    plain = create_app(**{**configured, "SHARDKIT_REDIS_URL": None})
    yield plain
    plain.extensions["shardkit"].close()


@pytest.fixture
def kit(app):
    return app.extensions["shardkit"].kit


@pytest.fixture
def eventually():
    """``eventually(condition)`` returns the condition's first true value, or fails after *within_s*."""

    def wait(condition, *, within_s=60.0):
        deadline, pause = time.monotonic() + within_s, threading.Event()
        while not (value := condition()):
            if time.monotonic() > deadline:
                pytest.fail(f"still not so after {within_s:g} s: {condition}")
            pause.wait(0.05)
        return value

    return wait


@pytest.fixture
def visitor(app):
    """Makes people with accounts."""
    return lambda app=app: Visitor(app).join()


@pytest.fixture
def deliver(kit):
    """Deliver every effect that waits."""
    found = handlers(kit, famous_from=5)

    def run():
        while kit.outbox.deliver(found, limit=1000):
            pass

    return run
