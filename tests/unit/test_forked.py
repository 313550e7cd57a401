"""A forked child has no connection of its parent's: neither to a server nor to a replica of one."""

from __future__ import annotations

from uuid import UUID

import pytest

from shardkit import Settings
from shardkit.core.shardmap import Server
from shardkit.db import forked
from shardkit.db.engines import Engines

REPLICA = "host=127.0.0.1 port=2 dbname=x"


@pytest.fixture(autouse=True)
def _nobody_else(monkeypatch):
    """No call reaches what other tests keep open in this process: it was not forked."""
    monkeypatch.setattr(forked, "_calls", [])


def test_every_engine_gets_a_new_pool():
    server = Server("pg1", "host=127.0.0.1 port=1 dbname=x", UUID(int=2), replicas=(REPLICA,))
    engines = Engines(Settings(catalog_url="postgresql:///x"), cluster_id=UUID(int=1))
    pools = [engines.of(server).pool, engines.of_replica(server, REPLICA).pool]
    forked._after_fork()
    assert not {id(pool) for pool in pools} & {id(engines.of(server).pool), id(engines.of_replica(server, REPLICA).pool)}


def test_what_is_gone_is_not_called():
    calls = []

    class Something:
        def __init__(self):
            forked.in_forked_child(self.call)

        def call(self):
            calls.append(self)

    kept, gone = Something(), Something()
    del gone
    forked._after_fork()
    assert calls == [kept]
