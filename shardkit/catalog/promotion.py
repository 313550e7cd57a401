"""After a promotion: lost fences are closed again, and the catalog remembers the timeline.

A fence that had not reached the standby when the primary died is gone after the promotion: the schema is open again under an
epoch that the map has left behind, and a program with an old map could write to it.
"""

from __future__ import annotations

import logging

from shardkit.catalog.changes import raise_timeline
from shardkit.core.shardmap import Server, ShardMap
from shardkit.db.connect import connect_admin, connect_living
from shardkit.db.lineage import Lineage
from shardkit.db.servers import close_left_behind
from shardkit.errors import ShardKitError
from shardkit.settings import Settings

log = logging.getLogger("shardkit.promotion")


def after_promotion(settings: Settings, shardmap: ShardMap, server: Server, timeline: int) -> None:
    """Close what the map has left behind on *server*, then write its new *timeline* down; never raises.

    In this order: a timeline in the map means that the server was looked through.
    """
    try:
        with connect_living(server, settings, cluster_id=shardmap.cluster_id, lineage=Lineage()) as connection:
            for schema in close_left_behind(connection, shardmap, server.name):
                log.warning(
                    "after the promotion of server %r, %s was open again: its fence was lost, and it was closed",
                    server.name,
                    schema,
                )
        with connect_admin(settings.catalog_url, settings) as catalog:
            raise_timeline(catalog, server.name, timeline)
    except Exception as exc:  # noqa: BLE001  # the next program that sees it tries again
        known = exc if isinstance(exc, ShardKitError) else type(exc).__name__
        log.warning("server %r is on timeline %d now; that could not be written down: %s", server.name, timeline, known)
