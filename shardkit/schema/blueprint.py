"""What every shard holds, as one SQL script with unqualified names: from models, or from an Alembic tree at its head."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import MetaData, create_mock_engine

from shardkit.errors import SettingsError
from shardkit.schema.trees import tree_as_sql


@dataclass(frozen=True, slots=True)
class Blueprint:
    """``sql`` is run once in every new shard, with the shard's schema as the only one in ``search_path``."""

    sql: str = ""


def from_metadata(metadata: MetaData) -> Blueprint:
    """All tables of *metadata* that name no schema of their own, with the row-level security of scoped models."""
    statements: list[str] = []

    def collect(statement: object, *_args: object, **_options: object) -> None:
        compiled = statement.compile(dialect=engine.dialect)  # type: ignore[attr-defined]
        statements.append(str(compiled).strip())

    engine = create_mock_engine("postgresql+psycopg://", collect, paramstyle="named")  # no %% for %: nothing is bound
    metadata.create_all(engine, tables=[t for t in metadata.sorted_tables if t.schema is None], checkfirst=False)
    return Blueprint(";\n".join(statements))


def from_models(path: str) -> Blueprint:
    """From ``package.module:Base``: a declarative base, or a MetaData."""
    module_name, _, attribute = path.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as exc:
        raise SettingsError(f"--models {path}: use package.module:Base ({exc})") from exc
    metadata = getattr(found, "metadata", found)
    if not isinstance(metadata, MetaData):
        raise SettingsError(f"--models {path} is neither a declarative base nor a MetaData")
    return from_metadata(metadata)


def from_tree(tree: Path) -> Blueprint:
    """From the Alembic tree in a directory, at its head."""
    return Blueprint(tree_as_sql(tree))
