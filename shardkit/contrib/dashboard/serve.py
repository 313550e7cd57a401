"""The dashboard as a program of its own: on loopback only, and only for who has the address with the token in it."""

from __future__ import annotations

import hmac
import secrets
from typing import Final

from flask import Flask, abort, redirect, request, url_for
from werkzeug.serving import BaseWSGIServer, make_server
from werkzeug.wrappers import Response

from shardkit.contrib.dashboard import dashboard
from shardkit.contrib.dashboard.feed import EVERY_S, Feed
from shardkit.contrib.tenants import host_of
from shardkit.errors import SettingsError
from shardkit.settings import Settings, is_loopback

COOKIE: Final = "shardkit_dashboard"


def make_app(settings: Settings, *, token: str, allow_changes: bool = False, every_s: float = EVERY_S) -> Flask:
    """The page at ``/``. Who comes with ``?token=`` gets it as a cookie, and an address without it; everybody else gets 403."""
    app = Flask(__name__, static_folder=None)
    app.register_blueprint(dashboard(settings, allow_changes=allow_changes, every_s=every_s), url_prefix="/")

    @app.before_request
    def known() -> Response | None:
        if not is_loopback(host_of(request.host).strip("[]")):
            abort(403)  # a name that somebody else's DNS leads here
        given = request.args.get("token")
        if given is not None and hmac.compare_digest(given.encode(), token.encode()):
            answer = redirect(url_for("shardkit_dashboard.page"))
            name = f"{COOKIE}_{request.environ['SERVER_PORT']}"  # cookies do not tell ports apart
            answer.set_cookie(name, token, httponly=True, samesite="Strict")
            return answer
        cookie = request.cookies.get(f"{COOKIE}_{request.environ['SERVER_PORT']}", "")
        if not hmac.compare_digest(cookie.encode(), token.encode()):
            abort(403, "open the address that `shardkit dashboard` printed: it has a token in it")
        return None

    return app


def make_dashboard_server(
    settings: Settings, *, host: str, port: int, allow_changes: bool = False, every_s: float = EVERY_S
) -> tuple[BaseWSGIServer, Feed, str]:
    """A server that listens, its feed, the address to open. Raises SettingsError for a *host* off loopback or a port in use."""
    if not is_loopback(host):
        raise SettingsError(
            f"the dashboard listens on loopback only, not on {host!r}; nothing was started. From elsewhere use an SSH tunnel, "
            "or the blueprint shardkit.contrib.dashboard in an app of yours behind its log-in"
        )
    token = secrets.token_urlsafe(24)
    app = make_app(settings, token=token, allow_changes=allow_changes, every_s=every_s)
    try:
        server = make_server(host, port, app, threaded=True)
    except (OSError, SystemExit) as exc:
        raise SettingsError(f"port {port} on {host} is in use: give another --port; nothing was started") from exc
    server.daemon_threads = True  # type: ignore[attr-defined]  # of ThreadingMixIn: a page that is open ends nobody's Ctrl-C
    shown = f"[{host}]" if ":" in host else host
    return server, app.extensions["shardkit_dashboard"], f"http://{shown}:{server.server_port}/?token={token}"
