"""Who a request is for: a resolver takes the request and gives a tenant, or None."""

from __future__ import annotations

from collections.abc import Callable

from flask import Request, session

from shardkit.core.hashing import TenantKey
from shardkit.errors import TenantKeyError

Resolver = Callable[[Request], TenantKey | None]


def from_header(name: str, *, kind: type[str | int] = str) -> Resolver:
    """The tenant is the value of a header; *kind* is the tenant type of the cluster. Anybody can send one."""
    return lambda request: _key(request.headers.get(name), kind)


def from_path(name: str, *, kind: type[str | int] = str) -> Resolver:
    """The tenant is the part *name* of the URL, as in ``/<name>/orders``."""
    return lambda request: _key((request.view_args or {}).get(name), kind)


def from_host(domain: str) -> Resolver:
    """The tenant is the label before *domain*: ``acme`` of ``acme.example.com`` for ``example.com``."""
    suffix = f".{domain.strip('.').lower()}"

    def resolve(request: Request) -> str | None:
        host = request.host.partition(":")[0].lower()
        label = host.removesuffix(suffix)
        return label if label not in ("", host) and "." not in label else None

    return resolve


def from_login(key: str = "tenant") -> Resolver:
    """The tenant is what the log-in put under *key* into Flask's session, whose cookie is signed."""
    return lambda _request: session.get(key)


def _key(text: object, kind: type[str | int]) -> TenantKey | None:
    if text is None or text == "":
        return None
    try:
        return kind(str(text))
    except ValueError:
        raise TenantKeyError("the request names no tenant of this cluster's type") from None
