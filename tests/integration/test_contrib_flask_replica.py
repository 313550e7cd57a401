"""Flask over a streaming replica that lags: who has written sees it on the next page, whichever process serves that."""

from __future__ import annotations

import pytest

flask = pytest.importorskip("flask", reason="Flask is not installed (extra: test)")

from fleet import Order, fleet_on
from sqlalchemy import select
from sqlalchemy.engine import make_url
from standby import make_standby

from shardkit import ShardKit as Kit
from shardkit import run_local
from shardkit.catalog.changes import set_replicas
from shardkit.contrib.flask import ShardKit, from_header

HOUR_S = 3600.0


@pytest.fixture(scope="module")
def cluster():
    quiet = {"autovacuum": "off"}  # a commit of its own that a lagging replica has not applied is one more that it lacks
    with run_local(servers=2, redis=False, trust=True, fast=True, settings=quiet) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def fleet(cluster):
    with fleet_on(cluster) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def standby(cluster, fleet):
    """A replica of the second server."""
    standby = make_standby(cluster, of="pg2", name="pg2b")
    with fleet.admin() as catalog:
        set_replicas(catalog, "pg2", [standby.url_of(make_url(fleet.servers["pg2"]).database)])
    return standby


@pytest.fixture
def tenant(fleet, tenant):
    """A tenant of the server that has a replica."""
    return next(name for n in range(1000) if fleet.map.locate(name := f"{tenant}-{n}").server == "pg2")


@pytest.fixture
def processes(fleet, standby):
    """Two applications as two processes would have them: all that they share is what a browser carries."""
    with Kit(settings=lax(fleet)) as one, Kit(settings=lax(fleet)) as other:
        yield build(one), build(other)


def lax(fleet):
    """Reads may come from a replica, and may be an hour old: only the cookie asks for more."""
    return fleet.settings(read_from="replica", replica_max_lag_s=HOUR_S, replica_check_s=0.05)


def build(kit):
    app = flask.Flask("shop")
    shards = ShardKit(app, tenant=from_header("X-Tenant"), kit=kit)

    @app.post("/orders/<note>")
    def add(note):
        shards.session.add(Order(note=note))
        shards.session.commit()
        return {}

    @app.get("/orders")
    def listed():
        notes = list(shards.read.scalars(select(Order.note).order_by(Order.id)))
        return {"notes": notes, "from_replica": shards.read.on_replica}

    return app


@pytest.fixture
def lagging(fleet, standby, eventually):
    """The replica has everything up to now, and applies nothing new for an hour."""
    eventually(lambda: standby.caught_up_with(fleet.servers["pg2"]))
    standby.apply_after("1h")
    yield standby
    standby.apply_after("0")


def visitor(app, tenant):
    """A browser; gives what it sees."""
    browser = app.test_client()
    browser.environ_base["HTTP_X_TENANT"] = tenant

    def look(path="/orders"):
        answer = browser.get(path)
        assert answer.status_code == 200, answer.text
        return answer.get_json()

    return browser, look


def test_who_has_written_sees_it_in_another_process_though_its_replica_lags(processes, tenant, lagging, eventually):
    here, there = processes
    writer, seen_here = visitor(here, tenant)
    reader, seen_there = visitor(there, tenant)
    eventually(lambda: seen_there()["from_replica"])
    assert writer.post("/orders/mine").status_code == 200
    cookie = writer.get_cookie("shardkit_after")
    assert seen_there() == {"notes": [], "from_replica": True}, "another visitor may see what the replica has"
    reader.set_cookie(cookie.key, cookie.value)  # the writer's next request, served by another process
    for _ in range(10):
        assert seen_there() == {"notes": ["mine"], "from_replica": False}
        assert seen_here() == {"notes": ["mine"], "from_replica": False}
    lagging.apply_after("0")
    assert eventually(lambda: (seen := seen_there())["from_replica"] and seen)["notes"] == ["mine"]


def test_pages_of_a_writer_never_go_back_in_time(processes, tenant, eventually):
    here, there = processes
    writer, seen_here = visitor(here, tenant)
    reader, seen_there = visitor(there, tenant)
    eventually(lambda: seen_there()["from_replica"])
    for number in range(1, 31):
        assert writer.post(f"/orders/{tenant}-{number}").status_code == 200
        cookie = writer.get_cookie("shardkit_after")
        reader.set_cookie(cookie.key, cookie.value)
        for look in (seen_there, seen_here):
            seen = look()
            assert len(seen["notes"]) == number, seen
    eventually(lambda: seen_there()["from_replica"])
    assert len(seen_there()["notes"]) == 30
