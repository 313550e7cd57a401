"""A FastAPI application over HTTP: every request gets its own tenant's rows, or an answer that tells nothing."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

fastapi = pytest.importorskip("fastapi", reason="FastAPI is not installed (extra: test)")
httpx = pytest.importorskip("httpx", reason="httpx is not installed (extra: test)")
uvloop = pytest.importorskip("uvloop", reason="uvloop is not installed (extra: test)")

from fleet import Order, fleet_on
from sqlalchemy import select, text

from shardkit import AsyncRoutedSession, AsyncShardKit, ShardKit
from shardkit.contrib.fastapi import Tenants, from_header, from_host, from_path
from shardkit.errors import (
    CommitUnknownError,
    DeadlineError,
    PoolTimeoutError,
    ServerDownError,
    SessionError,
    ShardMovedError,
)

NEVER_SAID = "another tenant's name"


def app_of(kit, resolver=None):
    tenants = Tenants(resolver or from_header("X-Tenant"), kit=kit)
    app = fastapi.FastAPI()
    tenants.install(app)

    @app.post("/orders/{note}")
    async def add(note: str, session: AsyncRoutedSession = tenants.begin):
        session.add(Order(note=note))
        if note == "twice":
            session.add(Order(note=note))
        return {"added": note}

    @app.get("/orders")
    async def listed(session: AsyncRoutedSession = tenants.read):
        return list(await session.scalars(select(Order.note).order_by(Order.id)))

    @app.get("/raw")
    async def raw(session: AsyncRoutedSession = tenants.session):
        await asyncio.sleep(0)
        return [session.tenant, kit.current_tenant, list(await session.scalars(text("SELECT note FROM orders ORDER BY id")))]

    @app.get("/other/{tenant}")
    async def other(tenant: str, _session: AsyncRoutedSession = tenants.session):
        async with kit.read(tenant) as theirs:
            return list(await theirs.scalars(select(Order.note)))

    @app.get("/of/{tenant}")
    async def of(session: AsyncRoutedSession = tenants.read):
        return session.tenant

    @app.get("/raises/{name}")
    async def raises(name: str, session: AsyncRoutedSession = tenants.session):
        await session.scalar(text("SELECT 1"))
        raise ERRORS[name]

    return app


ERRORS = {
    "moved": ShardMovedError(NEVER_SAID),
    "down": ServerDownError(NEVER_SAID),
    "busy": PoolTimeoutError(NEVER_SAID),
    "late": DeadlineError(NEVER_SAID),
    "unknown": CommitUnknownError(NEVER_SAID),
    "wrong": SessionError(NEVER_SAID),
}


def client_of(app, base_url="http://api.example.com"):
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url=base_url)


def patient(fleet):
    """Settings for a machine that has more to do: a 503 in these tests is never one of a busy machine."""
    return fleet.settings(pool_timeout_s=120, connect_timeout_s=120, call_timeout_s=120)


def run(fleet, work, *, resolver=None, settings=None, base_url="http://api.example.com"):
    """``await work(client, kit)`` under uvloop."""

    async def main():
        async with AsyncShardKit(settings=settings or patient(fleet)) as kit:
            async with client_of(app_of(kit, resolver), base_url) as client:
                return await work(client, kit)

    return uvloop.run(main())


def test_a_hundred_tenants_at_once_under_uvloop_never_mix(fleet):
    tenants = [f"web-{number}" for number in range(100)]

    async def work(client, kit):
        async def visit(tenant, number):
            headers = {"X-Tenant": tenant}
            added = await client.post(f"/orders/{tenant}-{number}", headers=headers)
            assert added.status_code == 200, added.text
            session_tenant, current, notes = (await client.get("/raw", headers=headers)).json()
            assert session_tenant == current == tenant
            assert notes
            assert all(note.startswith(f"{tenant}-") for note in notes)

        for number in range(2):
            await asyncio.gather(*(visit(tenant, number) for tenant in tenants))
        listed = [(await client.get("/orders", headers={"X-Tenant": tenant})).json() for tenant in tenants]
        assert listed == [[f"{tenant}-0", f"{tenant}-1"] for tenant in tenants]
        assert kit.current_tenant is None

    run(fleet, work)


def test_no_tenant_is_400_and_a_key_that_cannot_be_is_404(fleet):
    async def work(client, _kit):
        missing = await client.get("/orders")
        empty = await client.get("/orders", headers={"X-Tenant": ""})
        assert (
            (missing.status_code, missing.json())
            == (empty.status_code, empty.json())
            == (400, {"detail": "no tenant was named"})
        )

    run(fleet, work)

    async def number(client, _kit):
        wrong = await client.get("/orders", headers={"X-Tenant": "acme"})
        assert (wrong.status_code, wrong.json()) == (404, {"detail": "not found"})
        other_type = await client.get("/orders", headers={"X-Tenant": "7"})  # an int, and this cluster's tenants are text
        assert (other_type.status_code, other_type.json()) == (404, {"detail": "not found"})

    run(fleet, number, resolver=from_header("X-Tenant", kind=int))


def test_another_tenant_cannot_be_asked_for_in_a_request(fleet, neighbours):
    one, other = neighbours

    async def work(client, _kit):
        await client.post("/orders/secret", headers={"X-Tenant": other})
        stolen = await client.get(f"/other/{other}", headers={"X-Tenant": one})
        assert stolen.status_code == 500
        assert "secret" not in stolen.text
        assert other not in stolen.text
        assert (await client.get(f"/other/{other}", headers={"X-Tenant": other})).json() == ["secret"]

    run(fleet, work)


@pytest.mark.parametrize(
    ("name", "status"), [("moved", 503), ("down", 503), ("busy", 503), ("late", 503), ("unknown", 500), ("wrong", 500)]
)
def test_errors_become_answers_that_tell_nothing(fleet, tenant, name, status):
    async def work(client, _kit):
        answer = await client.get(f"/raises/{name}", headers={"X-Tenant": tenant})
        assert answer.status_code == status
        assert NEVER_SAID not in answer.text
        assert answer.headers.get("Retry-After") == ("1" if status == 503 else None)

    run(fleet, work)


def test_a_failed_commit_is_never_answered_with_success(fleet, tenant):
    # The commit comes after the path function; were it after the response too, this would be a 200.
    async def work(client, _kit):
        answer = await client.post("/orders/twice", headers={"X-Tenant": tenant})
        assert answer.status_code == 500
        assert (await client.get("/orders", headers={"X-Tenant": tenant})).json() == []

    run(fleet, work)


def test_a_dead_server_is_503_for_its_tenants_only(fleet):
    on = {name: next(t for t in map(str, range(1000)) if fleet.map.locate(t).server == name) for name in fleet.servers}
    dead = {"pg2": "postgresql://postgres@127.0.0.1:1/nowhere"}

    async def work(client, _kit):
        gone = await client.get("/orders", headers={"X-Tenant": on["pg2"]})
        assert (gone.status_code, gone.headers["Retry-After"]) == (503, "1")
        assert (await client.get("/orders", headers={"X-Tenant": on["pg1"]})).status_code == 200

    run(fleet, work, settings=dataclasses.replace(patient(fleet), servers=dead))


def test_the_tenant_of_a_path_or_a_host(fleet):
    async def by_path(client, _kit):
        assert (await client.get("/of/acme")).json() == "acme"

    run(fleet, by_path, resolver=from_path("tenant"))

    async def by_host(client, _kit):
        assert (await client.get("/of/x")).json() == "acme"
        for host in ("example.com", "a.b.example.com", "evilexample.com", ".example.com", "acme.example.com.evil"):
            assert (await client.get("/of/x", headers={"Host": host})).status_code == 400, host

    run(fleet, by_host, resolver=from_host("example.com"), base_url="http://ACME.example.com")


def test_a_shard_that_moves_between_requests_is_followed(local_cluster):
    with fleet_on(local_cluster) as fleet, ShardKit(settings=fleet.settings()) as plain:
        with plain.begin("acme") as session:
            session.add(Order(note="carried"))

        async def work(client, kit):
            before = kit.locate("acme")
            fleet.move(before, elsewhere=True)
            assert (await client.get("/orders", headers={"X-Tenant": "acme"})).json() == ["carried"]
            assert kit.locate("acme").server != before.server

        run(fleet, work)
