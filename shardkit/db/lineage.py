"""Which of two databases with one identity is the living primary: the one on the higher timeline.

A promotion begins a new timeline. An old primary that comes back says it is the same server, and takes writes; only its
timeline, lower than one that was seen, gives it away. What was seen is kept in memory and in the shard map.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from uuid import UUID

from shardkit.core.shardmap import Server, ShardMap
from shardkit.errors import WrongServerError


class OldPrimaryError(WrongServerError):
    """The database is a server's old primary: it was superseded by a promotion, and was not used."""


class Lineage:
    """The highest timeline seen of each server. *risen* is called with a server and a timeline that nobody knew of."""

    def __init__(self, risen: Callable[[Server, int], None] = lambda _server, _timeline: None) -> None:
        self._risen = risen
        self._highest: dict[UUID, int] = {}
        self._lock = threading.Lock()

    def highest(self, server: Server) -> int:
        """The highest timeline of *server* that is known here or in the map; 0 if none is."""
        return max(self._highest.get(server.server_id, 0), server.timeline)

    def saw(self, server: Server, timeline: int) -> None:
        """*server* answered as a primary on *timeline*. Raises OldPrimaryError for one that was superseded."""
        with self._lock:
            known = self.highest(server)
            if timeline > known:
                self._highest[server.server_id] = timeline
        if timeline < known:
            raise OldPrimaryError(
                f"the database behind server {server.name!r} is on timeline {timeline}, and timeline {known} was seen: it is "
                "an old primary that was superseded by a promotion, and it was not used. Rebuild it as a replica (pg_rewind)"
            )
        if timeline > max(known, 1):
            self._risen(server, timeline)

    def learn(self, found: ShardMap) -> None:
        """Take over what a newer map knows."""
        with self._lock:
            for server in found.servers.values():
                self._highest[server.server_id] = self.highest(server)
