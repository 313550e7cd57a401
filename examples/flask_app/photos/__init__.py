"""A photo-sharing service on shardkit and Flask: ``create_app`` makes it, ``python -m photos demo`` shows it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from flask import Flask
from flask_wtf.csrf import CSRFProtect

from photos.accounts import Limits
from photos.errors import install_errors
from photos.feeds import Explore
from photos.views import views
from photos.visitor import shards

csrf = CSRFProtect()


def create_app(**config: Any) -> Flask:
    """The application, configured by ``PHOTOS_*`` and ``SHARDKIT_*`` in the environment and, over these, by *config*."""
    app = Flask(__name__)
    app.config.update(
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Lax",
        SESSION_COOKIE_SECURE=True,
        PERMANENT_SESSION_LIFETIME=14 * 86_400,
        MAX_CONTENT_LENGTH=12 << 20,
        WTF_CSRF_TIME_LIMIT=None,  # as long as the session lives
        MEDIA=Path(os.environ.get("PHOTOS_MEDIA", "media")).absolute(),
        PASSWORD_METHOD="scrypt",  # a method
        LOGIN_LIMITS=Limits(),
        FAMOUS_FROM=1000,
    )
    app.config.from_prefixed_env("PHOTOS")
    app.config.update(config)
    app.config["MEDIA"] = Path(app.config["MEDIA"])
    if not app.config.get("SECRET_KEY"):
        raise RuntimeError("no secret key: set PHOTOS_SECRET_KEY (python -c 'import secrets; print(secrets.token_hex(32))')")
    shards.init_app(app)
    csrf.init_app(app)
    app.extensions["explore"] = Explore()
    app.register_blueprint(views)
    install_errors(app)
    app.after_request(_guard)
    return app


def _guard(response):
    """What a browser may do with a page of ours: run our scripts, show our pictures, and keep nothing of a person's."""
    response.headers.setdefault(
        "Content-Security-Policy",
        "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    )
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    response.headers.setdefault("Referrer-Policy", "same-origin")
    if response.mimetype == "text/html":
        response.headers.setdefault("Cache-Control", "private, no-store")
    return response
