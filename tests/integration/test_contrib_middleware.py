"""WSGI, ASGI and Django: every request has its own tenant, also while its body is sent, and errors tell nothing."""

from __future__ import annotations

import asyncio
import sys
import threading
import types
import wsgiref.util
from wsgiref.validate import validator

import django
import httpx
import pytest
from django.conf import settings as django_settings
from django.http import HttpResponse, StreamingHttpResponse
from django.test import AsyncClient, Client
from django.urls import path
from fleet import Order
from sqlalchemy import select

from shardkit import AsyncShardKit, ShardKit
from shardkit.contrib import asgi, wsgi
from shardkit.contrib.tenants import Asked, from_header, from_host, from_path, host_of, is_exempt
from shardkit.errors import CommitUnknownError, SessionError, ShardMovedError, TenantKeyError, TenantLockedError

NEVER_SAID = "another tenant's name"
ERRORS = {"moved": ShardMovedError(NEVER_SAID), "unknown": CommitUnknownError(NEVER_SAID), "wrong": SessionError(NEVER_SAID)}


@pytest.fixture
def orders(kit, tenant):
    with kit.begin(tenant) as session:
        session.add(Order(note=f"of {tenant}"))


def wsgi_client(application):
    return httpx.Client(
        transport=httpx.WSGITransport(validator(application), raise_app_exceptions=False), base_url="http://shop.example.com"
    )


def wsgi_app(kit):
    def application(environ, start_response):
        name = environ["PATH_INFO"].strip("/")
        if name in ERRORS:
            raise ERRORS[name]
        start_response("200 OK", [("Content-Type", "text/plain")])

        def body():
            with kit.session() as session:  # made while it is sent, in the tenant's context still
                yield from (note.encode() for note in session.scalars(select(Order.note)))

        return [str(kit.current_tenant).encode()] if name == "health" else body()

    return application


def test_wsgi(kit, tenant, orders):
    application = wsgi.TenantMiddleware(wsgi_app(kit), kit=kit, tenant=from_header("X-Tenant"), exempt=["/health"])
    with wsgi_client(application) as client:
        assert client.get("/", headers={"X-Tenant": tenant}).text == f"of {tenant}"
        assert client.get("/", headers={"X-Tenant": "somebody else"}).text == ""
        missing = client.get("/")
        assert (missing.status_code, missing.text) == (400, "no tenant was named")
        assert client.get("/health").text == "None"
        moved = client.get("/moved", headers={"X-Tenant": tenant})
        assert (moved.status_code, moved.headers["Retry-After"]) == (503, "1")
        assert NEVER_SAID not in moved.text
        assert client.get("/unknown", headers={"X-Tenant": tenant}).status_code == 500
    assert kit.current_tenant is None


def test_wsgi_lets_the_programs_own_errors_be(kit, tenant):
    application = wsgi.TenantMiddleware(wsgi_app(kit), kit=kit, tenant=from_header("X-Tenant"))
    environ = {"HTTP_X_TENANT": tenant, "PATH_INFO": "/wrong"}
    wsgiref.util.setup_testing_defaults(environ)
    with pytest.raises(SessionError):
        application(environ, lambda *_: None)


def test_a_wsgi_body_that_is_read_in_another_thread_keeps_its_tenant(kit, tenant, orders):
    application = wsgi.TenantMiddleware(wsgi_app(kit), kit=kit, tenant=from_header("X-Tenant"))
    environ = {"HTTP_X_TENANT": tenant, "PATH_INFO": "/"}
    wsgiref.util.setup_testing_defaults(environ)
    body, found = application(environ, lambda *_: None), []
    reader = threading.Thread(target=lambda: found.extend(body))
    reader.start()
    reader.join()
    body.close()
    assert found == [f"of {tenant}".encode()]


def test_wsgi_answers_an_application_that_failed_after_it_began_to_answer(kit, tenant):
    def application(_environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        raise ERRORS["moved"]

    with wsgi_client(wsgi.TenantMiddleware(application, kit=kit, tenant=lambda asked: tenant)) as client:
        assert client.get("/").status_code == 503


def test_the_tenant_in_a_wsgi_path_is_the_one_that_was_written(kit):
    def application(_environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [str(kit.current_tenant).encode()]

    environ = {"PATH_INFO": "/k\xe4se/orders".encode().decode("latin-1")}
    wsgiref.util.setup_testing_defaults(environ)
    body = wsgi.TenantMiddleware(application, kit=kit, tenant=from_path())(environ, lambda *_: None)
    assert b"".join(body).decode() == "k\xe4se"
    body.close()


async def test_two_headers_of_one_name_are_not_taken_for_either(fleet):
    tenants = []

    async def application(_scope, _receive, _send):
        tenants.append(kit.current_tenant)

    async with AsyncShardKit(settings=fleet.settings()) as kit:
        headers = [(b"x-tenant", b"mine"), (b"X-Tenant", b"theirs")]
        middleware = asgi.TenantMiddleware(application, kit=kit, tenant=from_header("X-Tenant"))
        await middleware({"type": "http", "path": "/", "headers": headers}, None, None)
    assert tenants == ["mine,theirs"]


def asgi_app(kit):
    async def application(scope, receive, send):
        if scope["type"] == "lifespan":
            return
        name = scope["path"].strip("/")
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept", "subprotocol": str(kit.current_tenant)})
            return
        if name in ERRORS:
            raise ERRORS[name]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if name == "late":
            raise ERRORS["moved"]
        if name == "health":
            await send({"type": "http.response.body", "body": str(kit.current_tenant).encode()})
            return
        async with kit.session() as session:
            notes = (await session.scalars(select(Order.note))).all()
        await send({"type": "http.response.body", "body": "".join(notes).encode()})

    return application


async def test_asgi(fleet, tenant, orders):
    async with AsyncShardKit(settings=fleet.settings()) as kit:
        application = asgi.TenantMiddleware(asgi_app(kit), kit=kit, tenant=from_host("example.com"), exempt=["/health"])
        transport = httpx.ASGITransport(application, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{tenant}.example.com") as client:
            assert (await client.get("/")).text == f"of {tenant}"
            both = await asyncio.gather(client.get("/"), client.get("/", headers={"Host": "other.example.com"}))
            assert [one.text for one in both] == [f"of {tenant}", ""]
            assert (await client.get("/", headers={"Host": "example.com"})).status_code == 400
            assert (await client.get("/health", headers={"Host": "example.com"})).text == "None"
            moved = await client.get("/moved")
            assert (moved.status_code, moved.headers["retry-after"]) == (503, "1")
            assert NEVER_SAID not in moved.text
            assert (await client.get("/wrong")).status_code == 500
        sent = []

        async def send(message):
            sent.append(message)

        host = [(b"host", f"{tenant}.example.com".encode())]
        await application({"type": "websocket", "path": "/", "headers": host}, None, send)
        await application({"type": "websocket", "path": "/", "headers": []}, None, send)
        await application({"type": "lifespan"}, None, send)
        assert sent[0]["subprotocol"] == tenant
        assert sent[1]["type"] == "websocket.close"
        with pytest.raises(ShardMovedError):  # the answer has begun: nobody may add another one
            await application({"type": "http", "path": "/late", "headers": host}, None, send)


@pytest.fixture(scope="module")
def in_django(fleet):
    """Django, configured once for the process, with a kit of this module's fleet."""
    with ShardKit(settings=fleet.settings()) as kit:
        project = types.ModuleType("planted_django_project")

        def listed(request):
            with kit.session() as session:
                return HttpResponse("".join(session.scalars(select(Order.note))))

        async def listed_async(request):
            await asyncio.sleep(0)
            return HttpResponse(str(kit.current_tenant))

        def streamed(request):
            tenant = kit.current_tenant
            return StreamingHttpResponse(iter([str(tenant)]))

        def raises(request, name):
            raise ERRORS[name]

        project.kit = kit
        project.tenant = lambda request: request.headers.get("X-Tenant")
        project.urlpatterns = [
            path("", listed),
            path("async", listed_async),
            path("streamed", streamed),
            path("health", lambda request: HttpResponse(str(kit.current_tenant))),
            path("raises/<name>", raises),
        ]
        sys.modules[project.__name__] = project
        django_settings.configure(
            ROOT_URLCONF=project.__name__,
            ALLOWED_HOSTS=["*"],
            SECRET_KEY="for tests",
            MIDDLEWARE=["shardkit.contrib.django.TenantMiddleware"],
            SHARDKIT={"KIT": f"{project.__name__}.kit", "TENANT": f"{project.__name__}.tenant", "EXEMPT": ["/health"]},
        )
        django.setup()
        yield kit
        del sys.modules[project.__name__]


def test_django(in_django, tenant):
    with in_django.begin(tenant) as session:
        session.add(Order(note=f"of {tenant}"))
    client = Client(raise_request_exception=False)
    mine = {"X-Tenant": tenant}
    assert client.get("/", headers=mine).content.decode() == f"of {tenant}"
    assert client.get("/", headers={"X-Tenant": "somebody else"}).content == b""
    assert client.get("/").status_code == 400
    assert client.get("/health").content == b"None"
    assert b"".join(client.get("/streamed", headers=mine).streaming_content).decode() == tenant
    moved = client.get("/raises/moved", headers=mine)
    assert (moved.status_code, moved["Retry-After"]) == (503, "1")
    assert NEVER_SAID.encode() not in moved.content
    assert client.get("/raises/wrong", headers=mine).status_code == 500
    assert in_django.current_tenant is None


async def test_django_under_asyncio(in_django, tenant):
    client = AsyncClient(raise_request_exception=False)
    assert (await client.get("/async", headers={"X-Tenant": tenant})).content.decode() == tenant
    assert (await client.get("/async")).status_code == 400
    with pytest.MonkeyPatch.context() as patched:

        def nowhere(*_given, **_named):
            raise ERRORS["moved"]

        patched.setattr(in_django, "tenant", nowhere)
        moved = await client.get("/async", headers={"X-Tenant": tenant})
        assert (moved.status_code, moved["Retry-After"]) == (503, "1")
    assert (await client.get("/health")).content == b"None"


def test_another_tenant_cannot_be_asked_for(kit, tenant):
    def nosy(environ, start_response):
        with kit.session("somebody else"):
            return []

    application = wsgi.TenantMiddleware(nosy, kit=kit, tenant=lambda asked: tenant)
    environ = {"PATH_INFO": "/"}
    wsgiref.util.setup_testing_defaults(environ)
    with pytest.raises(TenantLockedError):
        application(environ, lambda *_: None)


def test_resolvers():
    asked = Asked("/acme/orders", "acme.example.com", {"x-tenant": "7"})
    assert from_header("X-TENANT")(asked) == "7"
    assert from_header("X-Tenant", kind=int)(asked) == 7
    assert from_header("X-Other")(asked) is None
    assert from_path()(asked) == "acme"
    assert from_path(5)(asked) is None
    assert from_path()(Asked("/", "", {})) is None
    assert from_host("example.com")(asked) == "acme"
    for host in ("example.com", "a.b.example.com", "evilexample.com", ".example.com", "acme.example.com.evil"):
        assert from_host("example.com")(Asked("/", host, {})) is None
    with pytest.raises(TenantKeyError):
        from_path(kind=int)(asked)
    for other_spelling in ("07", "+7", " 7", "0_7", "\u0667", "7" * 5000):
        with pytest.raises(TenantKeyError):
            from_header("X-Tenant", kind=int)(Asked("/", "", {"x-tenant": other_spelling}))
    assert host_of("ACME.example.com:8000") == "acme.example.com"
    assert host_of("[::1]:8000") == "[::1]"
    assert is_exempt("/health/live", ["/health"])
    assert not is_exempt("/healthy", ["/health"])
