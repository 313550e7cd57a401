"""Who looks at a page: the person that logged in is the tenant of the request."""

from __future__ import annotations

from typing import Any

from flask import g, session

from photos.models import User
from shardkit.contrib.flask import ShardKit, from_login

# Not locked to one tenant: people look at what others show. Each use of another person's shard is written out, by its tenant.
shards = ShardKit(tenant=from_login("tenant"), lock=False)


def me() -> Any:
    """The visitor's account, as a row of the cache; None for somebody who is not logged in."""
    if "me" not in g:
        g.me = None
        if "tenant" in session and "name" in session:
            g.me = shards.kit.cache.get_row(User, session["name"], by="name", tenant=session["tenant"])
            if g.me is None:  # a cookie of an account that is no more
                session.clear()
    return g.me


def enter(tenant: str, name: str) -> None:
    """Log somebody in. Nothing of an earlier session is kept, its CSRF token neither."""
    session.clear()
    session.update(tenant=tenant, name=name)
    session.permanent = True
    g.pop("me", None)


def leave() -> None:
    """Log out."""
    session.clear()
    g.pop("me", None)
