"""One initialised cluster a module; every test takes tenants of its own."""

from __future__ import annotations

import asyncio
import inspect
import itertools

import pytest
import redis
from fleet import fleet_on

from shardkit import ShardKit

_numbers = itertools.count()


@pytest.fixture(scope="module")
def fleet(local_cluster):
    with fleet_on(local_cluster) as fleet:
        yield fleet


@pytest.fixture
def kit(fleet):
    with ShardKit(settings=fleet.settings()) as kit:
        yield kit


@pytest.fixture
def tenant():
    """A tenant no other test has."""
    return f"tenant-{next(_numbers)}"


@pytest.fixture
def neighbours(fleet, tenant):
    """A tenant and another one in the same shard, neither used by any other test."""
    shard = fleet.map.shard_of(tenant)
    return tenant, next(name for n in itertools.count() if fleet.map.shard_of(name := f"{tenant}-next-{n}") == shard)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Run a test that is a coroutine function, and close the kits it opened in the same event loop."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    given = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}

    async def run():
        try:
            await pyfuncitem.obj(**given)
        finally:
            for kit in pyfuncitem.funcargs.get("opened", ()):
                await kit.close()

    asyncio.run(run())
    return True


@pytest.fixture
def raw_redis(local_cluster):
    """A plain client of the cluster's Redis."""
    with redis.Redis.from_url(local_cluster.redis_url) as client:
        yield client
