"""Kinds of tables: sharded (in every shard), global (in one place), reference (the same on every server).

A model says ``__shardkit__ = {"kind": "global"}`` or ``"reference"``; without that it is sharded. Global and reference tables
have a schema of their own, so that one name means one thing in every session, and a shard may be joined with a reference table.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import MetaData, Table, event
from sqlalchemy.orm import Mapper

from shardkit.core.names import GLOBAL_SCHEMA, REFERENCE_SCHEMA
from shardkit.errors import TableKindError

KIND: Final = "shardkit_kind"
SCHEMAS: Final[dict[str, str | None]] = {"sharded": None, "global": GLOBAL_SCHEMA, "reference": REFERENCE_SCHEMA}
# A key can hold only where both tables are in one database, and every change of the target is checked there. Rows of a
# reference table arrive on a server by replication, which checks nothing: a deleted row would leave orders without a country.
HOLDS: Final = {
    ("sharded", "sharded"),
    ("global", "global"),
    ("global", "reference"),
    ("reference", "reference"),
    ("reference", "global"),
}


def declare_kind(cls: type[Any]) -> None:
    """Give the table of *cls* the schema of its kind, before SQLAlchemy makes it. Raises TableKindError."""
    said = cls.__dict__.get("__shardkit__")
    if said is None:
        return
    kind = said.get("kind", "sharded")
    if kind not in SCHEMAS or said.keys() - {"kind"}:
        raise TableKindError(
            f'model {cls.__name__} says __shardkit__ = {said!r}: it is {{"kind": "sharded"}}, "global" or "reference"'
        )
    if kind == "sharded":
        return
    given = cls.__dict__.get("__table_args__", ())
    if isinstance(given, dict):
        given = (given,)
    parts, options = (given[:-1], given[-1]) if given and isinstance(given[-1], dict) else (given, {})
    if options.get("schema") is not None:
        raise TableKindError(f"model {cls.__name__} is {kind} and names a schema as well: leave the schema out")
    cls.__table_args__ = (*parts, {**options, "schema": SCHEMAS[kind], "info": {**options.get("info", {}), KIND: kind}})


def kind_of(table: Table) -> str:
    """``sharded``, ``global``, ``reference``; a table with a schema of the program's own is ``foreign``."""
    return next((kind for kind, schema in SCHEMAS.items() if schema == table.schema), "foreign")


def tables_of(metadata: MetaData, kind: str) -> list[Table]:
    """Tables of one kind, those that others refer to first."""
    return [table for table in metadata.sorted_tables if kind_of(table) == kind]


def check_kinds(metadata: MetaData) -> None:
    """Refuse what cannot hold: TableKindError names the foreign key and says why."""
    for table in metadata.tables.values():
        if kind_of(table) != "sharded" and table.info.get("shardkit_scoped"):
            raise TableKindError(f"table {table.name!r} is {kind_of(table)}, so its rows cannot belong to tenants")
        if kind_of(table) in ("global", "reference") and any(c.info.get("shardkit_own_key") for c in table.columns):
            raise TableKindError(
                f"table {table.name!r} is {kind_of(table)}, so no shard makes its ids: use Identity() instead of ShardKey"
            )
        for key in table.foreign_key_constraints:
            pair = (kind_of(table), kind_of(key.referred_table))
            if pair[0] in SCHEMAS and pair not in HOLDS:
                raise TableKindError(
                    f"the foreign key from {table.name!r} ({pair[0]}) to {key.referred_table.name!r} ({pair[1]}) cannot hold: "
                    f"{_why(*pair)}. Keep the column, without the key"
                )


def _why(_source: str, target: str) -> str:
    if target == "reference":
        return "rows of a reference table come to a server by replication, which asks no foreign key when a row goes away"
    return "the two tables are not in one database"


@event.listens_for(Mapper, "mapper_configured")
def _check(_mapper: Mapper[Any], cls: type[Any]) -> None:
    """When the program first uses its models, all of them are looked at."""
    metadata = getattr(cls, "metadata", None)
    if isinstance(metadata, MetaData) and any(table.info.get(KIND) for table in metadata.tables.values()):
        check_kinds(metadata)
