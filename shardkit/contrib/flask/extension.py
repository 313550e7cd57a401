"""The extension: a tenant and, when it is asked for, a session for each request of an application."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, fields
from typing import Any, Final, TypeVar

from flask import Flask, Response, current_app, g, has_request_context, request
from sqlalchemy.exc import DBAPIError

from shardkit._sync.kit import ShardKit as Kit
from shardkit.contrib.flask.answers import install
from shardkit.contrib.flask.resolvers import Resolver
from shardkit.errors import NoTenantError, SessionError, SettingsError, ShardKitError, TokenError
from shardkit.orm.session import RoutedSession
from shardkit.settings import CONFIG_VARIABLE, PREFIX, Settings

log = logging.getLogger("shardkit.flask")
NAME: Final = "shardkit"
HEALTH_URL: Final = "SHARDKIT_HEALTH_URL"
AFTER_COOKIE: Final = "SHARDKIT_AFTER_COOKIE"
AFTER_COOKIE_S: Final = 300
_NEEDS: Final = "shardkit_tenant"
View = TypeVar("View", bound=Callable[..., Any])


class Mounted:
    """The extension in one application, as ``app.extensions["shardkit"]``: its settings, and its kit, made when first used."""

    def __init__(self, settings: Settings, kit: Kit | None, *, after_cookie: str | None) -> None:
        self.settings, self.after_cookie = settings, after_cookie
        self._kit, self._lock = kit, threading.Lock()

    @property
    def kit(self) -> Kit:
        """The kit of this process; a forked one goes on with its own connections. Raises CatalogUnavailableError."""
        if self._kit is None:
            with self._lock:
                if self._kit is None:
                    self._kit = Kit(settings=self.settings)
        return self._kit

    def close(self) -> None:
        """Close the kit, if there is one."""
        with self._lock:
            kit, self._kit = self._kit, None
        if kit is not None:
            kit.close()


@dataclass(slots=True)
class _Visit:
    """What one request holds until it ends."""

    stack: ExitStack = field(default_factory=ExitStack)
    session: RoutedSession | None = None
    read: RoutedSession | None = None
    bad_cookie: bool = False


class ShardKit:
    """``ShardKit(app)``, or ``shards = ShardKit()`` and ``shards.init_app(app)``: one object for any number of applications.

    *tenant* is the resolver (or decorate one with ``@shards.tenant_resolver``). Inside a request the tenant is the current
    one and, unless *lock* is False, locked: ``shards.kit.session()`` needs no argument, and another tenant is refused.
    ``SHARDKIT_*`` in ``app.config`` are settings, over the environment's; *kit* is a ready kit to use instead.
    """

    def __init__(
        self, app: Flask | None = None, *, tenant: Resolver | None = None, lock: bool = True, kit: Kit | None = None
    ) -> None:
        self._resolver, self._lock, self._ready = tenant, lock, kit
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Serve *app*. Settings are checked now, the catalog is asked at first use. Raises SettingsError."""
        settings = self._ready.settings if self._ready is not None else settings_of(app.config)
        app.extensions[NAME] = Mounted(settings, self._ready, after_cookie=app.config.get(AFTER_COOKIE, "shardkit_after"))
        app.before_request(self._enter)
        app.after_request(self._carry)
        app.teardown_request(_leave)
        install(app)
        health_url = app.config.get(HEALTH_URL, "/healthz")
        if health_url:
            app.add_url_rule(health_url, "shardkit_health", self.no_tenant(_health))

    def tenant_resolver(self, resolver: Resolver) -> Resolver:
        """Make the function below the resolver: it takes the request and gives the tenant, or None."""
        self._resolver = resolver
        return resolver

    def no_tenant(self, view: View) -> View:
        """Exempt a view: the resolver is not asked, and a session of the request's tenant is refused."""
        setattr(view, _NEEDS, "none")
        return view

    def tenant_optional(self, view: View) -> View:
        """A view for both: where the resolver names nobody it runs without a tenant."""
        setattr(view, _NEEDS, "optional")
        return view

    @property
    def kit(self) -> Kit:
        """The kit of the current application."""
        return mounted().kit

    @property
    def session(self) -> RoutedSession:
        """The request's session; it commits when told to, and what was not committed is rolled back at the end."""
        visit = _visit()
        if visit.session is None:
            visit.session = visit.stack.enter_context(self.kit.session())
        return visit.session

    @property
    def read(self) -> RoutedSession:
        """The request's read-only session, the cheapest way; from replicas where the settings allow it."""
        visit = _visit()
        if visit.read is None:
            visit.read = visit.stack.enter_context(self.kit.read())
        return visit.read

    def _enter(self) -> None:
        need = _need()
        if need == "none":
            return
        here, visit = mounted(), _visit()
        if self._resolver is None:
            raise SettingsError("no tenant resolver: give ShardKit(tenant=...), or decorate one with @shards.tenant_resolver")
        tenant = self._resolver(request)
        if tenant is None:
            if need == "optional":
                return
            raise NoTenantError
        token = request.cookies.get(here.after_cookie) if here.after_cookie else None
        try:
            block = here.kit.tenant(tenant, lock=self._lock, token=token)
        except TokenError:  # damaged, forged, another cluster's: as if it were not there
            visit.bad_cookie = True
            block = here.kit.tenant(tenant, lock=self._lock)
        visit.stack.enter_context(block)

    def _carry(self, response: Response) -> Response:
        """A visitor sees his own writes on the next page too, also where replicas are read."""
        here, kit = mounted(), mounted()._kit
        if not here.after_cookie or kit is None or kit.current_tenant is None:
            return response
        if kit.wrote and kit.map.servers[kit.locate(kit.current_tenant).server].replicas:
            try:
                token = kit.token()
            except (ShardKitError, DBAPIError) as exc:  # what was written stays written
                log.warning("no read-your-writes token could be had: %s", exc)
            else:
                response.set_cookie(
                    here.after_cookie,
                    token,
                    max_age=AFTER_COOKIE_S,
                    httponly=True,
                    samesite="Lax",
                    secure=request.is_secure,
                )
        elif _visit().bad_cookie:
            response.delete_cookie(here.after_cookie)
        return response


def settings_of(config: Mapping[str, Any]) -> Settings:
    """Settings from ``SHARDKIT_*`` of an application's *config*, over the environment's. Raises SettingsError."""
    given = {key.removeprefix(PREFIX).lower(): value for key, value in config.items() if key.startswith(PREFIX)}
    for own in (HEALTH_URL, AFTER_COOKIE):
        given.pop(own.removeprefix(PREFIX).lower(), None)
    file = given.pop(CONFIG_VARIABLE.removeprefix(PREFIX).lower(), None)
    unknown = sorted(given.keys() - {known.name for known in fields(Settings)})
    if unknown:
        named = ", ".join(PREFIX + name.upper() for name in unknown)
        raise SettingsError(f"unknown setting {named} in app.config; nothing was started")
    environ = dict(os.environ) if file is None else {**os.environ, CONFIG_VARIABLE: str(file)}
    return Settings.from_env(environ, **given)


def on_leave(call: Callable[[], object]) -> None:
    """Call *call* when the request ends; without a request, never."""
    if has_request_context():
        _visit().stack.callback(call)


def mounted() -> Mounted:
    """What ``init_app`` put into the current application. Raises SettingsError."""
    found: Mounted | None = current_app.extensions.get(NAME)
    if found is None:
        raise SettingsError("this application has no shardkit: call init_app(app) of your ShardKit")
    return found


def _visit() -> _Visit:
    if not has_request_context():
        raise SessionError("outside a request there is no session of one: use shards.kit and its blocks; nothing was sent")
    found: _Visit | None = g.get("_shardkit")
    if found is None:
        found = g._shardkit = _Visit()
    return found


def _need() -> str:
    if request.endpoint is None or request.routing_exception is not None or request.endpoint.rpartition(".")[2] == "static":
        return "none"
    if request.method == "OPTIONS" and getattr(request.url_rule, "provide_automatic_options", False):
        return "none"
    view = current_app.view_functions[request.endpoint]
    return str(getattr(view, _NEEDS, None) or getattr(getattr(view, "view_class", None), _NEEDS, "one"))


def _leave(_error: BaseException | None) -> None:
    visit: _Visit | None = g.pop("_shardkit", None)
    if visit is not None:
        with suppress(ShardKitError, DBAPIError):  # a rollback on a connection that is gone: the answer is made already
            visit.stack.close()


def _health() -> tuple[dict[str, Any], int]:
    """Whether this process can route. A server that is down is its tenants' 503, no reason to take this process away."""
    try:
        return {"status": "ok", "map_version": mounted().kit.map.version}, 200
    except ShardKitError as exc:
        log.warning("not healthy: %s", exc)
        return {"status": "no shard map"}, 503
