"""Django: middleware that makes a request's tenant the current one in its view.

    MIDDLEWARE = [..., "shardkit.contrib.django.TenantMiddleware"]
    SHARDKIT = {"KIT": "shop.db.kit", "TENANT": "shop.tenants.of_request", "EXEMPT": ["/admin", "/health"]}

``KIT`` names a ShardKit (or a function that gives it) and ``TENANT`` a function from the request to its tenant. Django's own
models are not routed: what goes through shardkit are SQLAlchemy sessions of the kit. A streamed body is made after the view has
returned: let it take its tenant along (``with kit.session(tenant)``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.conf import settings
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.utils.module_loading import import_string

from shardkit._sync.kit import ShardKit
from shardkit.contrib.tenants import answer_to, is_exempt
from shardkit.errors import NoTenantError, SettingsError, ShardKitError


class TenantMiddleware:
    """Inside the view the tenant is current and locked. Works for sync and for async views."""

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self._get_response = get_response
        given = getattr(settings, "SHARDKIT", {})
        if not {"KIT", "TENANT"} <= given.keys():
            raise SettingsError('Django\'s settings need SHARDKIT = {"KIT": "module.kit", "TENANT": "module.function"}')
        kit = import_string(given["KIT"])
        self._kit: ShardKit = kit() if callable(kit) else kit
        self._resolve: Callable[[HttpRequest], Any] = import_string(given["TENANT"])
        self._exempt = tuple(given.get("EXEMPT", ()))
        self._asynchronous = iscoroutinefunction(get_response)
        if self._asynchronous:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> Any:
        """One request."""
        if self._asynchronous:
            return self._respond_async(request)
        if is_exempt(request.path, self._exempt):
            return self._get_response(request)
        try:
            with self._kit.tenant(self._tenant(request), lock=True):
                return self._get_response(request)
        except ShardKitError as exc:
            if (said := _said(exc)) is None:
                raise
            return said

    async def _respond_async(self, request: HttpRequest) -> HttpResponseBase:
        if is_exempt(request.path, self._exempt):
            return await self._get_response(request)
        try:
            with self._kit.tenant(self._tenant(request), lock=True):
                return await self._get_response(request)
        except ShardKitError as exc:
            if (said := _said(exc)) is None:
                raise
            return said

    def process_exception(self, _request: HttpRequest, error: Exception) -> HttpResponseBase | None:
        """The answer to an error of a view; None leaves it to Django."""
        return _said(error)

    def _tenant(self, request: HttpRequest) -> Any:
        tenant = self._resolve(request)
        if tenant is None:
            raise NoTenantError
        return tenant


def _said(error: Exception) -> HttpResponseBase | None:
    answer = answer_to(error)
    if answer is None:
        return None
    headers = {} if answer.retry_after_s is None else {"Retry-After": str(answer.retry_after_s)}
    return HttpResponse(answer.text.encode(), status=answer.status, headers=headers, content_type="text/plain; charset=utf-8")
