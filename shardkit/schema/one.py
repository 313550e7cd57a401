"""One shard for Alembic: an engine whose connections stand in the shard's schema, while no move may touch it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine, create_engine
from sqlalchemy.pool import NullPool

from shardkit.catalog.ledger import hold_shards, moving_shards
from shardkit.catalog.rows import load_map
from shardkit.db.connect import connect_admin, server_url
from shardkit.db.steps import stand_in
from shardkit.errors import FleetBusyError
from shardkit.settings import Settings


@contextmanager
def shard_engine(settings: Settings, shard: int) -> Iterator[Engine]:
    """An engine on the server of *shard*, standing in its schema. Raises FleetBusyError while the shard is being moved."""
    with connect_admin(settings.catalog_url, settings) as catalog:
        if shard not in hold_shards(catalog, [shard]) or moving_shards(catalog, [shard]):
            raise FleetBusyError(f"shard {shard} is being moved; nothing was done. `shardkit moves list` shows how far it is")
        shard_map = load_map(catalog)
        route = shard_map.route(shard)
        url = server_url(shard_map.server(route.server), settings)
        with schema_engine(url, route.schema, settings, name=f"server {route.server!r}") as engine:
            yield engine


@contextmanager
def schema_engine(
    url: str, schema: str, settings: Settings, *, name: str = "the server", lock_timeout_ms: int = 0
) -> Iterator[Engine]:
    """An engine on the server at *url* whose connections stand in *schema*, with their own wait for locks (0: no limit)."""
    engine = create_engine(
        "postgresql+psycopg://",
        creator=lambda: stand_in(
            connect_admin(url, settings, name=name, watched=True), schema, lock_timeout_ms=lock_timeout_ms
        ),
        poolclass=NullPool,
        hide_parameters=True,
    )
    try:
        yield engine
    finally:
        engine.dispose()
