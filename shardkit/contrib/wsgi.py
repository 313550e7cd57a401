"""WSGI: middleware that makes a request's tenant the current one, for any application.

    application = TenantMiddleware(application, kit=kit, tenant=from_header("X-Tenant"), exempt=["/health"])

The resolver is trusted: a header or a path names a tenant, it does not prove who asks. Check that first.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from contextvars import Context, copy_context
from http import HTTPStatus
from typing import Any

from shardkit._sync.kit import ShardKit
from shardkit.contrib.tenants import Answer, Asked, Resolver, answer_to, host_of, is_exempt
from shardkit.errors import NoTenantError

Application = Callable[..., Iterable[bytes]]


class TenantMiddleware:
    """Inside the application, and while its body is sent, the tenant is current and locked: another one is refused.

    Paths in *exempt*, and those below them, go through without a tenant. A request without one is 400; errors of ours that say
    that nothing took effect are 503 with Retry-After, as long as nothing was sent.
    """

    def __init__(self, application: Application, *, kit: ShardKit, tenant: Resolver, exempt: Collection[str] = ()) -> None:
        self._application, self._kit, self._resolve, self._exempt = application, kit, tenant, tuple(exempt)

    def __call__(self, environ: Mapping[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """One request."""
        asked = _asked(environ)
        if is_exempt(asked.path, self._exempt):
            return self._application(environ, start_response)
        context = copy_context()  # the body may be asked for elsewhere than this call was made
        block: AbstractContextManager[Any] | None = None
        try:
            tenant = self._resolve(asked)
            if tenant is None:
                raise NoTenantError
            entering = self._kit.tenant(tenant, lock=True)
            context.run(entering.__enter__)
            block = entering
            return _Body(context, block, context.run(self._application, environ, start_response))
        except Exception as exc:
            if block is not None:
                context.run(block.__exit__, None, None, None)
            answer = answer_to(exc)
            if answer is None:
                raise
            begun = () if block is None else ((type(exc), exc, exc.__traceback__),)  # the application may have begun an answer
            return _say(answer, start_response, *begun)


class _Body:
    """The application's body, made in the tenant's context piece by piece."""

    def __init__(self, context: Context, block: AbstractContextManager[Any], body: Iterable[bytes]) -> None:
        self._context, self._block, self._body = context, block, body
        self._pieces: Iterator[bytes] | None = None

    def __iter__(self) -> Iterator[bytes]:
        self._pieces = self._context.run(iter, self._body)
        return self

    def __next__(self) -> bytes:
        assert self._pieces is not None  # iter() comes first
        return self._context.run(next, self._pieces)

    def close(self) -> None:
        """The server is done, or the client is gone."""
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                self._context.run(close)
        finally:
            self._context.run(self._block.__exit__, None, None, None)


def _asked(environ: Mapping[str, Any]) -> Asked:
    headers = {name[5:].replace("_", "-").lower(): str(value) for name, value in environ.items() if name.startswith("HTTP_")}
    host = host_of(headers.get("host", str(environ.get("SERVER_NAME", ""))))
    path = str(environ.get("PATH_INFO", "")).encode("latin-1", "replace").decode("utf-8", "replace")  # bytes, says PEP 3333
    return Asked(path or "/", host, headers)


def _say(answer: Answer, start_response: Callable[..., Any], *begun: Any) -> list[bytes]:
    headers = [("Content-Type", "text/plain; charset=utf-8")]
    if answer.retry_after_s is not None:
        headers.append(("Retry-After", str(answer.retry_after_s)))
    start_response(f"{answer.status} {HTTPStatus(answer.status).phrase}", headers, *begun)
    return [answer.text.encode()]
