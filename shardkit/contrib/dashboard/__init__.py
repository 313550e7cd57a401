"""The dashboard: one page that shows a cluster and its moves as they are, for operators; a blueprint for your own Flask app.

    app.register_blueprint(dashboard(settings), url_prefix="/shardkit")     # behind your own log-in

It reads only, unless *allow_changes*; then moves can be begun, resumed, aborted, finished and rolled back from the page.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from flask import Blueprint, Response, abort, current_app, jsonify, make_response, request
from werkzeug.wrappers import Response as WebResponse

from shardkit.catalog.pulse import PulseWatch
from shardkit.contrib.dashboard.actions import ACTIONS, Actions
from shardkit.contrib.dashboard.cacheinfo import cache_info
from shardkit.contrib.dashboard.feed import EVERY_S, Feed
from shardkit.errors import ShardKitError
from shardkit.settings import Settings

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; frame-ancestors 'none'; form-action 'none'"
)


def dashboard(
    settings: Settings, *, allow_changes: bool = False, every_s: float = EVERY_S, name: str = "shardkit_dashboard"
) -> Blueprint:
    """The page, its events and its files. Whoever reaches it sees the cluster: put it behind a log-in."""
    pages = Blueprint(name, __name__, static_folder="static", static_url_path="/static")
    info = cache_info(settings)
    feed = Feed(functools.partial(PulseWatch, settings, cache=info), every_s=every_s)
    actions = Actions(settings) if allow_changes else None
    pages.record_once(lambda state: state.app.extensions.update({name: feed}))

    @pages.after_request
    def guarded(response: Response) -> Response:
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        return response

    @pages.get("/")
    def page() -> WebResponse:
        found = make_response(pages.send_static_file("dashboard.html"))
        found.headers["Cache-Control"] = "no-store"
        return found

    @pages.get("/pulse.json")
    def pulse() -> WebResponse:
        return Response(feed.once(), mimetype="application/json")

    @pages.get("/options.json")
    def options() -> WebResponse:
        return jsonify({"changes": actions is not None, "actions": list(ACTIONS)})

    @pages.get("/events")
    def events() -> WebResponse:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return Response(feed.events(), mimetype="text/event-stream", headers=headers)

    @pages.post("/moves")
    def begin() -> WebResponse:
        given = _given()
        shard, target = given.get("shard"), given.get("target")
        if type(shard) is not int or not isinstance(target, str):
            abort(400)
        return _done(lambda: _changes(actions).begin(shard, target))

    @pages.post("/moves/<int:move_id>/<action>")
    def act(move_id: int, action: str) -> WebResponse:
        _given()
        if action not in ACTIONS:
            abort(404)
        return _done(lambda: _changes(actions).act(move_id, action))

    return pages


def _changes(actions: Actions | None) -> Actions:
    if actions is None:
        abort(403, "this dashboard only reads")
    return actions


def _given() -> dict[str, Any]:
    """The JSON of a request from this very page: a form of another site can send neither this type nor this origin."""
    origin = request.headers.get("Origin")
    if not request.is_json or (origin is not None and urlsplit(origin).netloc != request.host):
        abort(403)
    found = request.get_json()
    if not isinstance(found, dict):
        abort(400)
    return found


def _done(work: Callable[[], int]) -> WebResponse:
    try:
        return jsonify({"move": work()})
    except ShardKitError as exc:
        current_app.logger.warning("a change was refused: %s", exc)
        return make_response(jsonify({"error": str(exc)}), 409)
