"""What every shard holds, as one SQL script with unqualified names: from models, or from an Alembic tree at its head."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sqlalchemy import MetaData, create_mock_engine

from shardkit.core.names import APP_ROLE, OPERATOR_ROLE, VERSION_TABLE
from shardkit.core.sqltext import BETWEEN
from shardkit.errors import NeedsOnlineError, SettingsError
from shardkit.orm.kinds import check_kinds, tables_of
from shardkit.schema.render import render
from shardkit.schema.tree import Tree

_CONCURRENTLY: Final = re.compile(r"\bINDEX\s+CONCURRENTLY\s+", re.IGNORECASE)
VERSION_TABLE_SQL: Final = (
    f"CREATE TABLE {VERSION_TABLE} (version_num varchar(32) NOT NULL, "
    "CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)); "
    f"REVOKE ALL ON {VERSION_TABLE} FROM {APP_ROLE}, {OPERATOR_ROLE}"
)


@dataclass(frozen=True, slots=True)
class Blueprint:
    """``sql`` is run once in every new shard, with the shard's schema as the only one in ``search_path``."""

    sql: str = ""


def from_metadata(metadata: MetaData) -> Blueprint:
    """All sharded tables of *metadata*, with the row-level security of scoped models. Raises TableKindError."""
    check_kinds(metadata)
    statements: list[str] = []

    def collect(statement: Any, *_args: object, **_options: object) -> None:
        compiled = statement.compile(dialect=engine.dialect)
        statements.append(str(compiled).strip())

    engine = create_mock_engine("postgresql+psycopg://", collect, paramstyle="named")  # no %% for %: nothing is bound
    metadata.create_all(engine, tables=tables_of(metadata, "sharded"), checkfirst=False)
    return Blueprint(BETWEEN.join(statements))


def from_models(path: str) -> Blueprint:
    """From ``package.module:Base``: a declarative base, or a MetaData."""
    return from_metadata(models_metadata(path))


def models_metadata(path: str) -> MetaData:
    """The MetaData that ``package.module:Base`` names."""
    module_name, _, attribute = path.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as exc:
        raise SettingsError(f"--models {path}: use package.module:Base ({exc})") from exc
    metadata = getattr(found, "metadata", found)
    if not isinstance(metadata, MetaData):
        raise SettingsError(f"--models {path} is neither a declarative base nor a MetaData")
    return metadata


def from_tree(tree: Path) -> Blueprint:
    """From the Alembic tree in a directory, at its head.

    Raises NeedsOnlineError for a revision that reads data: then make empty shards, and run ``shardkit migrate upgrade``.
    """
    line = Tree(tree)
    return Blueprint(script_at(line, line.head))


def script_at(tree: Tree, revision: str | None) -> str:
    """The SQL that makes a new shard as *tree* has it at *revision* (None: before the first). Raises NeedsOnlineError."""
    steps = tree.path((), revision) or ()
    statements = [VERSION_TABLE_SQL]
    for one in render(tree, steps).values():
        if one.online:
            raise NeedsOnlineError(
                f"revision {one.revision} cannot be rendered as SQL: {one.online}; nothing was done. Make the cluster without "
                "this tree, then run `shardkit migrate upgrade`; to look for drift, name a shard that is right"
            )
        # The shard is new and empty, and nobody writes to it: its indexes are built in the transaction that makes it.
        statements += [_CONCURRENTLY.sub("INDEX ", s, count=1) for s in one.statements]
    statements += [
        f"INSERT INTO {VERSION_TABLE} VALUES ('{name}')"  # noqa: S608  the program's own revisions
        for name in (steps[-1].after if steps else ())
    ]
    return BETWEEN.join(statements)
