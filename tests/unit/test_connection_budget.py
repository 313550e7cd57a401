"""The budget of a process counts the connections of all its threads, while they come and go."""

from __future__ import annotations

import sys
import threading
from uuid import uuid4

import pytest

from shardkit import Settings
from shardkit.core.shardmap import Server
from shardkit.db.connect import check_budget, count_in
from shardkit.errors import PoolTimeoutError


class Connection:
    closed = False


def settings(budget):
    return Settings(catalog_url="postgresql:///x", connection_budget=budget, pool_size=1, fan_out_connections=1)


def server():
    return Server("pg1", "host=127.0.0.1 port=1 dbname=x", uuid4())


def test_closed_and_forgotten_connections_do_not_count():
    there, held = server(), [Connection(), Connection()]
    for connection in held:
        count_in(there, connection)
    with pytest.raises(PoolTimeoutError, match="holds 2 connections"):
        check_budget(there, settings(2))
    check_budget(there, settings(2), replica="of its own")
    held[0].closed = True
    check_budget(there, settings(2))
    held[0] = Connection()
    count_in(there, held[0])
    with pytest.raises(PoolTimeoutError):
        check_budget(there, settings(2))
    del held[0], connection
    check_budget(there, settings(2))


def test_threads_that_connect_at_the_same_time_do_not_disturb_each_other():
    there, given, problems = server(), settings(1_000_000), []

    def connect():
        held = []
        try:
            for number in range(1000):
                check_budget(there, given)
                held.append(Connection())
                count_in(there, held[-1])
                if number % 50 == 49:
                    held.clear()
        except Exception as exc:  # whatever it is, the test fails
            problems.append(exc)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=connect) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert problems == []
