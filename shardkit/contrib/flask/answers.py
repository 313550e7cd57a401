"""From an error to an answer: what a client may know of it, never its text."""

from __future__ import annotations

from typing import Any, Final

from flask import Flask, current_app
from sqlalchemy.exc import DBAPIError
from werkzeug.exceptions import BadRequest, HTTPException, InternalServerError, NotFound, ServiceUnavailable

from shardkit.core.outcome import safe_to_retry
from shardkit.errors import IdError, NoTenantError, Outcome, ShardKitError, TenantKeyError, UnknownShardError

RETRY_AFTER_S: Final = 1


def install(app: Flask) -> None:
    """Answer our errors, and the database's that are safe to retry. The app's own handlers of HTTP errors draw the pages."""
    app.register_error_handler(ShardKitError, _answer)
    app.register_error_handler(DBAPIError, _answer)


def as_http(error: Exception) -> HTTPException | None:
    """The HTTP error to answer *error* with; None for one that is the program's own mistake."""
    if isinstance(error, NoTenantError):
        return BadRequest("no tenant was named")
    if isinstance(error, TenantKeyError | IdError | UnknownShardError):
        return NotFound()
    if isinstance(error, ShardKitError):
        if error.outcome is Outcome.UNKNOWN:
            return InternalServerError("It is not known whether this took effect: look before you repeat it.")
        again = error.outcome is Outcome.NOT_DONE and error.retryable
    else:
        again = safe_to_retry(getattr(getattr(error, "orig", None), "sqlstate", None))
    if again:
        return ServiceUnavailable("Not available just now. Nothing was changed.", retry_after=RETRY_AFTER_S)
    return None


def _answer(error: Exception) -> Any:
    found = as_http(error)
    if found is None:
        raise error
    return current_app.handle_user_exception(found)
