"""ASGI: middleware that makes a request's tenant the current one, for any application; websockets too.

    application = TenantMiddleware(application, kit=kit, tenant=from_header("X-Tenant"), exempt=["/health"])

The resolver is trusted: a header or a path names a tenant, it does not prove who asks. Check that first.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from typing import Any

from shardkit._async.kit import AsyncShardKit
from shardkit.contrib.tenants import Answer, Asked, Resolver, answer_to, host_of, is_exempt
from shardkit.errors import NoTenantError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]
POLICY_VIOLATION = 1008


class TenantMiddleware:
    """Inside the application the tenant is current and locked: another one is refused.

    Paths in *exempt*, and those below them, go through without a tenant. A request without one is 400 (a websocket is closed);
    errors of ours that say that nothing took effect are 503 with Retry-After, as long as nothing was sent.
    """

    def __init__(self, application: Application, *, kit: AsyncShardKit, tenant: Resolver, exempt: Collection[str] = ()) -> None:
        self._application, self._kit, self._resolve, self._exempt = application, kit, tenant, tuple(exempt)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """One connection."""
        if scope["type"] not in ("http", "websocket") or is_exempt(scope["path"], self._exempt):
            await self._application(scope, receive, send)
            return
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            tenant = self._resolve(_asked(scope))
            if tenant is None:
                raise NoTenantError
            with self._kit.tenant(tenant, lock=True):
                await self._application(scope, receive, watched)
        except Exception as exc:
            answer = answer_to(exc)
            if answer is None or begun:
                raise
            await _say(answer, scope["type"], send)


def _asked(scope: Mapping[str, Any]) -> Asked:
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]},{value}" if name in headers else value  # neither of two may pass for the only one
    server = scope.get("server") or ("",)
    return Asked(scope["path"] or "/", host_of(headers.get("host", str(server[0]))), headers)


async def _say(answer: Answer, kind: str, send: Send) -> None:
    if kind == "websocket":
        await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": answer.text})
        return
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    if answer.retry_after_s is not None:
        headers.append((b"retry-after", str(answer.retry_after_s).encode()))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.text.encode()})
