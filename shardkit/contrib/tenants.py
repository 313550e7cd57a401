"""The tenant of a request, for any framework; and the answers to our errors, which say nothing about other tenants."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Final, NamedTuple

from shardkit.core.hashing import TenantKey
from shardkit.core.outcome import safe_to_retry
from shardkit.errors import NoTenantError, Outcome, ShardKitError, TenantKeyError

RETRY_AFTER_S: Final = 1


class Asked(NamedTuple):
    """What a resolver sees of a request: path, host (lower case, no port), headers by lower-case name."""

    path: str
    host: str
    headers: Mapping[str, str]


Resolver = Callable[[Asked], TenantKey | None]


class Answer(NamedTuple):
    """An answer that was not the application's: status and what a client may know."""

    status: int
    text: str
    retry_after_s: int | None = None


def from_header(name: str, *, kind: type[str | int] = str) -> Resolver:
    """The tenant is the value of a header; *kind* is the tenant type of the cluster."""
    wanted = name.lower()
    return lambda asked: key_of(asked.headers.get(wanted), kind)


def from_host(domain: str) -> Resolver:
    """The tenant is the label before *domain*: ``acme`` of ``acme.example.com`` for ``example.com``."""
    label = label_before(domain)
    return lambda asked: label(asked.host)


def from_path(position: int = 0, *, kind: type[str | int] = str) -> Resolver:
    """The tenant is one part of the path: ``/acme/orders`` at position 0."""

    def resolve(asked: Asked) -> TenantKey | None:
        parts = asked.path.strip("/").split("/")
        return key_of(parts[position] if position < len(parts) else None, kind)

    return resolve


def label_before(domain: str) -> Callable[[str], str | None]:
    """From a host (lower case, no port) to the one label of it before *domain*; to None for any other host."""
    suffix = f".{domain.strip('.').lower()}"

    def label(host: str) -> str | None:
        found = host.removesuffix(suffix)
        return found if found not in ("", host) and "." not in found else None

    return label


def key_of(text: object, kind: type[str | int]) -> TenantKey | None:
    """*text* of a request as a tenant key; None where there is none. Raises TenantKeyError for one that is no *kind*."""
    if text is None or text == "":
        return None
    try:
        found = kind(str(text))
    except ValueError:
        found = None
    if found is None or str(found) != str(text):  # int() also takes "+7", "0_7" and other scripts' digits
        raise TenantKeyError("the request names no tenant of this cluster's type")
    return found


def host_of(header: str) -> str:
    """The host of a Host header: lower case, without its port."""
    host = header.strip().lower()
    return host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]


def is_exempt(path: str, exempt: Collection[str]) -> bool:
    """Whether *path* is one of *exempt*, or below one."""
    return any(path == one or path.startswith(one.rstrip("/") + "/") for one in exempt)


def answer_to(error: BaseException) -> Answer | None:
    """The answer to an error of ours, or of the database where it is safe to retry; None: it is the program's own."""
    if isinstance(error, NoTenantError):
        return Answer(400, "no tenant was named")
    if isinstance(error, TenantKeyError):
        return Answer(404, "not found")
    if isinstance(error, ShardKitError):
        if error.outcome is Outcome.UNKNOWN:
            return Answer(500, "it is not known whether this took effect: look before you repeat it")
        if error.outcome is Outcome.NOT_DONE and error.retryable:
            return Answer(503, "not available just now, nothing was changed", RETRY_AFTER_S)
    elif safe_to_retry(getattr(getattr(error, "orig", None), "sqlstate", None)):
        return Answer(503, "not available just now, nothing was changed", RETRY_AFTER_S)
    return None
