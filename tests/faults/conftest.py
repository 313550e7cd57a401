"""A cluster whose servers can be reached through proxies that fail on demand."""

from __future__ import annotations

import contextlib

import pytest
from fault_proxy import FaultProxy
from fleet import fleet_on
from sqlalchemy.engine import make_url

from shardkit import ShardKit
from shardkit._async import kit as kit_of_asyncio
from shardkit._sync import kit as kit_of_threads

PATIENT = {"connect_timeout_s": 120.0, "tcp_timeout_s": 120.0, "call_timeout_s": 120.0, "pool_timeout_s": 120.0}


class Behind:
    """A fleet behind proxies: ``settings()`` lead through them, and ``proxies[server]`` fails when told to.

    What ends a wait in two minutes is the deadline a test gives, and no other limit; nor does a machine that stalls.
    """

    def __init__(self, fleet, proxies):
        self.fleet, self.proxies = fleet, proxies

    def settings(self, **given):
        urls = {
            name: make_url(url).set(port=self.proxies[name].port).render_as_string(hide_password=False)
            for name, url in self.fleet.servers.items()
        }
        return self.fleet.settings(servers=urls, **(PATIENT | given))

    def tenant_on(self, server):
        return next(t for t in (f"tenant {n}" for n in range(10_000)) if self.fleet.map.locate(t).server == server)


@pytest.fixture(autouse=True)
def _patient(monkeypatch):
    """``kit.run`` tries for longer than a busy machine stalls. Not one test here is about when it gives up."""
    for module in (kit_of_asyncio, kit_of_threads):
        monkeypatch.setattr(module, "RUN_BUDGET_S", 120.0)


@pytest.fixture(scope="module")
def fleet(local_cluster):
    with fleet_on(local_cluster) as fleet:
        yield fleet


@pytest.fixture
def behind(fleet):
    with contextlib.ExitStack() as stack:
        proxies = {}
        for name, url in fleet.servers.items():
            parts = make_url(url)
            proxies[name] = stack.enter_context(FaultProxy(parts.host, parts.port))
        yield Behind(fleet, proxies)


@pytest.fixture
def kit(behind):
    with ShardKit(settings=behind.settings(pool_size=2)) as kit:
        yield kit
