"""The statements that load what the cache misses: rows, or lists of keys, together with the snapshot that saw them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, Text, bindparam, cast, func, select, true, tuple_, type_coerce
from sqlalchemy.sql.elements import ColumnElement

from shardkit.core.cacheproto import Snapshot, parse_snapshot
from shardkit.orm.cached import Entity, Key

ROW_AT = 3
"""Columns of the witness, before those of the row."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """Rows, and whether what they were read in may stand for them in the cache."""

    rows: list[tuple[Any, ...]]
    snapshot: Snapshot
    may_fill: bool
    """It was a READ COMMITTED statement; an older snapshot proves nothing about now."""


def _witness() -> Any:
    return select(
        cast(func.pg_current_snapshot(), Text).label("snapshot"),
        func.current_setting("transaction_isolation").label("isolation"),
        func.pg_is_in_recovery().label("standby"),
    ).subquery("witness")


def _mine(entity: Entity) -> list[ColumnElement[bool]]:
    return [] if entity.tenant is None else [entity.tenant == bindparam("owner", type_=entity.tenant.type)]


def row_statement(entity: Entity, key: Key) -> Select[Any]:
    """One row by *key*; parameters ``owner``, ``k0``, ``k1`` …"""
    matches = [c == bindparam(f"k{n}", type_=c.type) for n, c in enumerate(key.columns)]
    return _rows(entity, [*matches, *_mine(entity)])


def rows_statement(entity: Entity) -> Select[Any]:
    """Rows by primary keys; parameters ``owner``, ``keys``."""
    return _rows(entity, [_among(entity), *_mine(entity)])


def keys_statement(entity: Entity) -> Select[Any]:
    """The columns of all keys of rows by primary keys; parameters ``owner``, ``keys``."""
    return select(*entity.key_columns).where(_among(entity), *_mine(entity))


def _among(entity: Entity) -> ColumnElement[bool]:
    columns = entity.primary.columns
    wanted: Any = bindparam("keys", expanding=True)
    return columns[0].in_(wanted) if len(columns) == 1 else tuple_(*columns).in_(wanted)


def _rows(entity: Entity, matches: Sequence[ColumnElement[bool]]) -> Select[Any]:
    witness = _witness()
    columns = [
        column if kind is None else type_coerce(column, kind).label(f"c{n}")
        for n, (column, kind) in enumerate(zip(entity.columns, entity.codec.read_as, strict=True))
    ]
    on = matches[0]
    for match in matches[1:]:
        on &= match
    return select(*witness.c, *columns).select_from(witness.outerjoin(entity.table, on))


def list_statement(entity: Entity, key: Key) -> Select[Any]:
    """The newest primary keys by *key*; parameters ``owner``, ``k0``, ``k1`` …"""
    assert key.listing is not None
    witness = _witness()
    matches = [c == bindparam(f"k{n}", type_=c.type) for n, c in enumerate(key.columns)]
    chosen = dict.fromkeys((*entity.primary.columns, *key.order))
    newest = (
        select(*(c.label(f"c{n}") for n, c in enumerate(chosen)))
        .where(*matches, *_mine(entity))
        .order_by(*(c.desc() for c in key.order))
        .limit(key.listing.limit)
        .subquery("newest")
    )
    places = {column: newest.c[f"c{n}"] for n, column in enumerate(chosen)}
    return (
        select(*witness.c, *(places[c] for c in entity.primary.columns))
        .select_from(witness.outerjoin(newest, true()))
        .order_by(*(places[c].desc() for c in key.order))
    )


def loaded(found: Sequence[Any], *, absent_at: int) -> Loaded:
    """From the result of one of the statements; a row whose column *absent_at* (part of the key) is NULL is none."""
    snapshot, isolation, standby = found[0][:ROW_AT]
    rows = [tuple(row[ROW_AT:]) for row in found if row[ROW_AT + absent_at] is not None]
    return Loaded(rows, parse_snapshot(snapshot, standby=standby), isolation == "read committed")
