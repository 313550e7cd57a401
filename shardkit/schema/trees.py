"""Alembic trees on disk: where ours are, and how one becomes a configuration; connections are objects, never URL strings."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from shardkit.core.names import CATALOG_SCHEMA
from shardkit.db.connect import connect_admin, execute_script
from shardkit.errors import SettingsError
from shardkit.settings import Settings


def own_tree(name: str) -> Path:
    """Our own tree ``catalog`` or ``shard``: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).parents[1]
    return next(p for p in (package / "migrations" / name, package.parent / "migrations" / name) if p.is_dir())


def tree_config(tree: Path, **attributes: Any) -> Config:
    """Alembic's configuration for the tree in a directory."""
    if not (tree / "env.py").is_file():
        raise SettingsError(f"{tree} is not an Alembic tree: it has no env.py; nothing was done")
    config = Config(stdout=io.StringIO())
    config.set_main_option("script_location", str(tree.absolute()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes.update(attributes)
    return config


def catalog_head() -> str:
    """The newest revision of the catalog's tables that this release knows."""
    return ScriptDirectory.from_config(tree_config(own_tree("catalog"))).get_current_head() or ""


def upgrade_catalog(settings: Settings) -> None:
    """Bring the catalog database to the newest revision of its tree; does nothing if it is there."""
    engine = create_engine(
        "postgresql+psycopg://",
        creator=lambda: connect_admin(settings.catalog_url, settings, autocommit=False),
        poolclass=NullPool,
        hide_parameters=True,
    )
    with engine.begin() as connection:
        execute_script(connection, "SELECT pg_advisory_xact_lock(7105, 1)")
        execute_script(connection, f"CREATE SCHEMA IF NOT EXISTS {CATALOG_SCHEMA}")
        command.upgrade(tree_config(own_tree("catalog"), connection=connection, schema=CATALOG_SCHEMA), "head")
