"""Sentry: every event gets tags that say where it happened: shard, server, epoch, the tenant as a digest, our error's code.

    sentry_sdk.init(...)
    install(kit)

Nothing is done on the way of a unit of work: the tags are looked up when an event is made.
"""

from __future__ import annotations

from typing import Any

from sentry_sdk.scope import add_global_event_processor

from shardkit.contrib.identify import Kit, of_current, of_error


def install(kit: Kit, *, secret: str = "") -> None:
    """Tag the events of this process from now on. *secret* goes into the tenants' digests."""

    def tag(event: Any, hint: Any) -> Any:
        error = (hint.get("exc_info") or (None, None))[1]
        found = {**of_current(kit, secret=secret), **of_error(error)}
        if found:
            event["tags"] = {**(event.get("tags") or {}), **{f"shardkit.{name}": str(value) for name, value in found.items()}}
        return event

    add_global_event_processor(tag)
