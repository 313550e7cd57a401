"""Statements that write many rows at once pass by the flush, where keys unique over all shards are reserved: refused.

Nothing would know of such a key, neither the next claimant nor ``locate_by``; so it is an error before anything is sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Insert, Update, inspect

from shardkit.errors import SessionError
from shardkit.orm.lone import GLOBAL_UNIQUE


def refuse_unreserved(statement: Insert | Update, params: Any) -> None:
    """Raise SessionError if *statement* sets a GlobalUnique column."""
    columns = [column for column in statement.table.columns if column.info.get(GLOBAL_UNIQUE)]
    if not columns:
        return
    given = set(_assigned(statement, params))
    mapper = statement._propagate_attrs.get("plugin_subject")
    for column in columns:
        names = {column.key, column.name}
        if mapper is not None:
            names |= {attribute.key for attribute in mapper.mapper.column_attrs if column in attribute.columns}
        if names & given:
            raise _refused(column)


def refuse_unreserved_mapper(mapper: Any) -> None:
    """The same for ``bulk_save_objects`` and its like."""
    for table in inspect(mapper).tables:
        for column in table.columns:
            if column.info.get(GLOBAL_UNIQUE):
                raise _refused(column)


def _refused(column: Any) -> SessionError:
    return SessionError(
        f"{column.table.name}.{column.name} is unique over all shards, and a bulk statement reserves no key in the registry: "
        "nothing was written. Use add() or add_all(), or set the attribute of a loaded object"
    )


def _assigned(statement: Any, params: Any) -> Iterator[str]:
    """Names of the columns or attributes that *statement* sets."""
    rows: Iterable[Any] = [params] if isinstance(params, Mapping) else params if isinstance(params, Sequence) else []
    several = [row for group in getattr(statement, "_multi_values", ()) or () for row in group]
    ordered = dict(getattr(statement, "_ordered_values", None) or ())
    for row in [statement._values or {}, ordered, *several, *rows]:
        if isinstance(row, Mapping):
            yield from (str(getattr(key, "key", key)) for key in row)
        else:  # values by position
            yield from (column.key for column, _ in zip(statement.table.columns, row, strict=False))
    yield from (str(getattr(name, "key", name)) for name in getattr(statement, "_select_names", None) or ())
