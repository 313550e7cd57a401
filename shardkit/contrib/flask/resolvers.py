"""Who a request is for: a resolver takes the request and gives a tenant, or None."""

from __future__ import annotations

from collections.abc import Callable

from flask import Request, session

from shardkit.contrib.tenants import host_of, key_of, label_before
from shardkit.core.hashing import TenantKey

Resolver = Callable[[Request], TenantKey | None]


def from_header(name: str, *, kind: type[str | int] = str) -> Resolver:
    """The tenant is the value of a header; *kind* is the tenant type of the cluster. Anybody can send one."""
    return lambda request: key_of(request.headers.get(name), kind)


def from_path(name: str, *, kind: type[str | int] = str) -> Resolver:
    """The tenant is the part *name* of the URL, as in ``/<name>/orders``."""
    return lambda request: key_of((request.view_args or {}).get(name), kind)


def from_host(domain: str) -> Resolver:
    """The tenant is the label before *domain*: ``acme`` of ``acme.example.com`` for ``example.com``."""
    label = label_before(domain)
    return lambda request: label(host_of(request.host))


def from_login(key: str = "tenant") -> Resolver:
    """The tenant is what the log-in put under *key* into Flask's session, whose cookie is signed."""
    return lambda _request: session.get(key)
