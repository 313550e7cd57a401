"""Connections that wait for the next fan-out are of the server as the map has it now, and no others."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from uuid import uuid4

import pytest

from shardkit import Settings
from shardkit.core.shardmap import Server, ServerState
from shardkit.db.scatter import Idle

SERVER = Server("pg1", "host=127.0.0.1 port=1 dbname=x", uuid4())


class Connection:
    born = 0.0

    def __init__(self):
        self.closed = False
        self.pgconn = SimpleNamespace(finish=lambda: setattr(self, "closed", True))


@pytest.fixture
def idle():
    return Idle(Settings(catalog_url="postgresql:///x", connection_lifetime_s=100))


def test_the_one_used_last_comes_first_and_old_ones_are_closed(idle):
    first, second = Connection(), Connection()
    for connection in (first, second):
        idle.give(SERVER, connection)
    assert idle.take(SERVER, now=1.0) is second
    assert idle.take(SERVER, now=101.0) is None
    assert (first.closed, second.closed) == (True, False)


@pytest.mark.parametrize(
    "now", [replace(SERVER, timeline=2), replace(SERVER, state=ServerState.DRAINING), replace(SERVER, dsn="host=127.0.0.2")]
)
def test_of_a_server_that_changed_none_is_kept(idle, now):
    before, under_way, after, elsewhere = (Connection() for _ in range(4))
    other = Server("pg2", "host=127.0.0.1 port=2 dbname=x", uuid4())
    idle.give(SERVER, before)
    idle.give(other, elsewhere)
    assert idle.take(now, now=1.0) is None
    assert before.closed
    idle.give(SERVER, under_way)  # by a fan-out that began with the map before
    assert under_way.closed
    idle.give(now, after)
    assert idle.take(now, now=1.0) is after
    assert idle.clear() == [elsewhere]
    assert not after.closed
    assert not elsewhere.closed
