"""Slots of the cache's relay are found again by their names: what is made under one can always be dropped, whoever died."""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

import psycopg

from shardkit.core.names import relay_slot_prefix
from shardkit.db.publications import drop_publication
from shardkit.sql import statements

SQL: Final = statements("feed")
PUBLICATION: Final = "shardkit_cache"


def drop_relay_slots(connection: psycopg.Connection[Any], *, cluster_id: UUID) -> list[str]:
    """Drop this cluster's relay slots in the database of *connection*, under whatever server's name, and their publication.

    psycopg.errors.ObjectInUse where a relay reads one at this moment: that one, and the publication, stay.
    """
    found = connection.execute(SQL["drop_slots"], {"prefix": relay_slot_prefix(cluster_id)}).fetchall()
    drop_publication(connection, PUBLICATION)
    return [name for name, _ in found]
