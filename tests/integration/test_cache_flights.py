"""Callers of one process that want the same at the same time: one loads, and each has a value of its own."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from cachelab import Doc, cached_fleet_on

from shardkit._sync import filling


@pytest.fixture(scope="module")
def fleet(local_cluster):
    with cached_fleet_on(local_cluster) as fleet:
        yield fleet


def test_what_one_caller_changes_in_its_value_is_not_seen_by_another(kit, tenant, eventually, monkeypatch):
    monkeypatch.setattr(filling, "JOIN_S", 60.0)
    monkeypatch.setattr(filling, "LEASE_MS", 60_000)
    with kit.begin(tenant) as s:
        doc = Doc(about={"tags": []})
        s.add(doc)
        s.flush()
        key = doc.id
    load, loading, joined = kit.cache._load, threading.Event(), threading.Event()

    def slow(*given):
        loading.set()
        assert joined.wait(60)
        return load(*given)

    monkeypatch.setattr(kit.cache, "_load", slow)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(kit.cache.get_row, Doc, key, tenant=tenant)
        assert loading.wait(60)
        second = pool.submit(kit.cache.get_row, Doc, key, tenant=tenant)
        eventually(lambda: kit.cache.counts.waits == 1)
        joined.set()
        one, other = first.result(60), second.result(60)
    assert kit.cache.counts.loads == 1
    one.about["tags"].append("mine")
    assert other.about == {"tags": []}
