"""Writes a new revision file, empty or with the differences between the models and one shard."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from alembic import command

from shardkit.catalog.rows import load_map
from shardkit.db.connect import connect_admin
from shardkit.errors import MigrationError
from shardkit.schema.blueprint import models_metadata
from shardkit.schema.one import shard_engine
from shardkit.schema.tree import Tree, as_ours
from shardkit.settings import Settings


def new_revision(
    tree: Path, message: str, *, settings: Settings | None = None, models: str | None = None, shard: int | None = None
) -> Path:
    """A new revision file in *tree*; with *settings* it holds what differs between the models and *shard*.

    Without *models* (``module:Base``) the tree's env.py must give its own ``target_metadata``.
    """
    line = Tree(tree)
    with ExitStack() as stack:
        if models is not None:
            line.config.attributes["target_metadata"] = models_metadata(models)
        if settings is not None:
            if shard is None:
                with connect_admin(settings.catalog_url, settings) as catalog:
                    shard = min(load_map(catalog).placements)
            engine = stack.enter_context(shard_engine(settings, shard))
            line.config.attributes["connection"] = stack.enter_context(engine.connect())
        with as_ours(f"the tree {tree.name}" if settings is None else f"the tree {tree.name} beside shard {shard}"):
            made = command.revision(line.config, message, autogenerate=settings is not None)
    if made is None or isinstance(made, list):
        raise MigrationError("Alembic wrote no revision; nothing was done")
    return Path(made.path)
