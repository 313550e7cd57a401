"""Every error a person can meet is a page, or for htmx a line, that says what happened and what to do."""

from __future__ import annotations

from flask import Flask, make_response, redirect, render_template, request, url_for
from flask_wtf.csrf import CSRFError
from werkzeug.exceptions import HTTPException

from photos.accounts import RefusedError, TooManyError
from photos.images import BadImageError
from shardkit.errors import NoTenantError

SAID = {
    400: ("That did not work", "Something in the request was not right. Go back and try again."),
    403: ("Not allowed", "This is not yours to change."),
    404: ("Not here", "There is no such page, or it was taken down."),
    405: ("That did not work", "This page cannot be used like that."),
    413: ("Too large", "A photo may have up to 12 MB. Choose a smaller one."),
    429: ("Too many tries", "Wait five minutes, then try again."),
    500: (
        "Something broke",
        "It is our fault, not yours. If you were sending something, look whether it arrived before you send it again.",
    ),
    503: (
        "Just a moment",
        "We are moving some furniture. Nothing was lost and nothing was changed: try again in a few seconds.",
    ),
}


def install_errors(app: Flask) -> None:
    """Register them all."""

    @app.errorhandler(NoTenantError)
    def to_log_in(_error):
        where = url_for("photos.log_in", next=request.full_path.rstrip("?") if request.method == "GET" else None)
        if "HX-Request" in request.headers:
            return "", 401, {"HX-Redirect": where}
        return redirect(where)

    @app.errorhandler(CSRFError)
    def expired(_error):
        return say(400, "This page was open too long", "Load it again, then do what you wanted to do.")

    @app.errorhandler(RefusedError)
    @app.errorhandler(BadImageError)
    def refused(error):
        return say(429 if isinstance(error, TooManyError) else 422, "That did not work", str(error))

    @app.errorhandler(HTTPException)
    def answer(error):
        if error.response is not None or (error.code or 500) < 400:
            return error
        title, text = SAID.get(error.code, SAID[400 if error.code < 500 else 500])
        answer = say(error.code, title, text)
        answer.headers.extend(pair for pair in error.get_headers() if pair[0] == "Retry-After")
        return answer


def say(code: int, title: str, text: str):
    """The page of an error, or its line for htmx."""
    template = "_problem.html" if "HX-Request" in request.headers else "error.html"
    answer = make_response(render_template(template, code=code, title=title, text=text), code)
    if "HX-Request" in request.headers:
        answer.headers.update({"HX-Retarget": "#problem", "HX-Reswap": "innerHTML"})
    if code == 429:
        answer.headers["Retry-After"] = "300"
    return answer
