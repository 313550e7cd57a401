"""FastAPI: each request has its tenant's session, and errors become answers that say nothing about other tenants.

    tenants = Tenants(from_header("X-Tenant"), kit=kit)
    tenants.install(app)

    @app.get("/orders/{order_id}")
    async def show(order_id: int, session: Annotated[AsyncRoutedSession, tenants.read]): ...

The resolver is trusted: a header or a path names a tenant, it does not prove who asks. Check that first, or resolve from what
has been checked.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DBAPIError

from shardkit._async.kit import AsyncShardKit
from shardkit.contrib.tenants import answer_to, key_of, label_before
from shardkit.core.hashing import TenantKey
from shardkit.errors import NoTenantError, ShardKitError
from shardkit.orm.session import AsyncRoutedSession

Resolver = Callable[[Request], TenantKey | None]


class Tenants:
    """Dependencies of one kit: ``tenants.session``, ``.begin`` and ``.read`` go into ``Annotated``.

    Inside the request the tenant is the current one and locked, so ``kit.session()`` needs no argument and another tenant is
    refused. Sessions end, and ``begin`` commits, *before* the response is sent: a client is never told of work that then failed
    to commit, and a slow one holds no connection. A streamed body needs a session of its own.
    """

    def __init__(self, resolver: Resolver, *, kit: AsyncShardKit | Callable[[Request], AsyncShardKit]) -> None:
        self._resolver = resolver
        self._kit_of = (lambda _request: kit) if isinstance(kit, AsyncShardKit) else kit
        self.session: Any = Depends(self._session, scope="function")
        """A session that commits when told to."""
        self.begin: Any = Depends(self._begin, scope="function")
        """A session that commits when the path function returns, and rolls back when it raises."""
        self.read: Any = Depends(self._read, scope="function")
        """A read-only session, the cheapest way."""

    def install(self, app: FastAPI) -> None:
        """Answer our errors, and the database's that are safe to retry, instead of letting them be a 500."""
        app.add_exception_handler(ShardKitError, answer)
        app.add_exception_handler(DBAPIError, answer)

    async def _session(self, request: Request) -> AsyncIterator[AsyncRoutedSession]:
        kit, tenant = self._resolved(request)
        with kit.tenant(tenant, lock=True):
            async with kit.session() as session:
                yield session

    async def _begin(self, request: Request) -> AsyncIterator[AsyncRoutedSession]:
        kit, tenant = self._resolved(request)
        with kit.tenant(tenant, lock=True):
            async with kit.begin() as session:
                yield session

    async def _read(self, request: Request) -> AsyncIterator[AsyncRoutedSession]:
        kit, tenant = self._resolved(request)
        with kit.tenant(tenant, lock=True):
            async with kit.read() as session:
                yield session

    def _resolved(self, request: Request) -> tuple[AsyncShardKit, TenantKey]:
        tenant = self._resolver(request)
        if tenant is None:
            raise NoTenantError
        return self._kit_of(request), tenant


def from_header(name: str, *, kind: type[str | int] = str) -> Resolver:
    """The tenant is the value of a header; *kind* is the tenant type of the cluster."""
    return lambda request: key_of(request.headers.get(name), kind)


def from_path(name: str, *, kind: type[str | int] = str) -> Resolver:
    """The tenant is the path parameter *name*."""
    return lambda request: key_of(request.path_params.get(name), kind)


def from_host(domain: str) -> Resolver:
    """The tenant is the label before *domain*: ``acme`` of ``acme.example.com`` for ``example.com``."""
    label = label_before(domain)
    return lambda request: label((request.url.hostname or "").lower())


async def answer(_request: Request, error: Exception) -> Response:
    """The answer to an error of ours or the database's: what a client may know, never its text."""
    found = answer_to(error)
    if found is None:
        raise error
    headers = None if found.retry_after_s is None else {"Retry-After": str(found.retry_after_s)}
    return JSONResponse({"detail": found.text}, found.status, headers)
