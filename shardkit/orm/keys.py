"""Primary keys that carry their shard: made by the shard's own ``next_id()``, for many objects in one round trip."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import BigInteger, Column, DefaultClause, Table, event, text
from sqlalchemy.orm import Mapper, Session
from sqlalchemy.orm.attributes import instance_state, set_committed_value
from sqlalchemy.types import TypeDecorator

_NEXT_IDS = text("SELECT array_agg(next_id()) FROM generate_series(1, :count)")  # one row: no cost per row


class ShardKey(TypeDecorator[int]):
    """The column type of an id: ``id: Mapped[int] = mapped_column(ShardKey, primary_key=True)``.

    As a primary key it is ``BIGINT DEFAULT next_id() NOT NULL``, the same text in every shard: ``search_path``, when
    the table is made, says whose ids it gets. Elsewhere, and where it is also a foreign key, it is a plain ``BIGINT``.
    """

    impl = BigInteger
    cache_ok = True
    __module__ = "shardkit"  # its public home, which Alembic writes into revisions: shardkit.ShardKey()


@event.listens_for(ShardKey, "after_parent_attach")
def _on_column(_type: ShardKey, column: Column[Any]) -> None:
    # A column learns of its keys and defaults only after its type: wait until it joins a table.
    event.listen(column, "before_parent_attach", _on_table)


def _on_table(column: Column[Any], _table: Table) -> None:
    # Decided once: Table.to_metadata() copies a column without its foreign keys, but with its info.
    own = column.info.setdefault("shardkit_own_key", _is_own_key(column))
    if own and column.server_default is None and column.default is None:
        column.autoincrement = False  # else SQLAlchemy would make it a BIGSERIAL
        column.server_default = DefaultClause(text("next_id()"))


def _is_own_key(column: Column[Any]) -> bool:
    return column.primary_key and isinstance(column.type, ShardKey) and not column.foreign_keys


def assign_ids(session: Session, new: Iterable[object]) -> None:
    """Give the objects in *new* their ids before a flush, in the order of ``add()``, by one statement for all of them.

    Without that SQLAlchemy sends one INSERT per object, because it cannot match the rows it gets back. A single object
    is left to the column's default, which costs no round trip of its own. Ids that were set by the program stay.
    """
    wanting = []
    keys: dict[Mapper[Any], str | None] = {}
    for instance in new:
        state = instance_state(instance)
        mapper = state.mapper
        if mapper not in keys:
            keys[mapper] = _key_name(mapper)
        key = keys[mapper]
        if key is not None and state.dict.get(key) is None:
            wanting.append((state.insert_order or 0, key, instance))
    if len(wanting) < 2:
        return
    wanting.sort(key=lambda want: want[0])
    ids: list[int] = session.connection().scalar(_NEXT_IDS, {"count": len(wanting)})
    for (_, key, instance), value in zip(wanting, sorted(ids), strict=True):
        set_committed_value(instance, key, value)  # half the time of setattr: no history of a value nobody set


def _key_name(mapper: Mapper[Any]) -> str | None:
    """The attribute that holds the mapper's own id; of joined tables the base's."""
    for column in mapper.primary_key:
        if isinstance(column, Column) and _is_own_key(column):
            return mapper.get_property_by_column(column).key
    return None
