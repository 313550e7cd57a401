"""What a transaction changes in cached tables: the names to mark before its COMMIT, gathered while it flushes.

Names are only ever added: one too many, after a savepoint was rolled back, costs a miss; one too few would be a stale read.
A write that does not say which rows it changes is remembered too, and stops the COMMIT.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any, Final, Protocol

from sqlalchemy import Column, ForeignKeyConstraint, Table, select, tuple_
from sqlalchemy.orm import Mapper, Session, UOWTransaction
from sqlalchemy.orm.base import LoaderCallableStatus
from sqlalchemy.sql.dml import Delete, Insert, Update
from sqlalchemy.sql.elements import ClauseElement

from shardkit.errors import UnknownKeysError
from shardkit.orm.cached import INFO, Entity

ANNOUNCED: Final = {"shardkit_announced": True}
"""Execution option of a statement whose keys are gathered."""
_ACTS: Final = frozenset({"CASCADE", "SET NULL", "SET DEFAULT"})
_UNKNOWN: Final = LoaderCallableStatus.NO_VALUE
Row = Mapping[Column[Any], Any]


class Writer(Protocol):
    """Places the markers; called between flush and COMMIT, in the transaction."""

    def place(self, driver: Any, names: set[str], /) -> None:
        """Mark *names* with the transaction of *driver*."""


class Changes:
    """Of one transaction: ``names`` still to be marked, ``placed`` ones, and tables changed in ways unknown."""

    __slots__ = ("before", "committing", "names", "placed", "unknown", "vouched")

    def __init__(self) -> None:
        self.before: dict[Any, Row] = {}
        self.names: set[str] = set()
        self.placed: set[str] = set()
        self.unknown: set[str] = set()
        self.vouched: set[str] = set()
        self.committing = False

    def add(self, names: Iterable[str]) -> None:
        """Remember *names*; those of this transaction that are marked stay marked until it ends."""
        self.names.update(name for name in names if name not in self.placed)

    def __bool__(self) -> bool:
        """Whether anything cached was changed."""
        return bool(self.names or self.placed or self.unknown or self.vouched)


def look_ahead(session: Session, changes: Changes) -> None:
    """Before a flush: keys that are about to go and were never loaded, and what PostgreSQL will change by itself."""
    for state in list(session._dirty_states):
        for changed in state.mapper.tables:
            changes.unknown.update(_told_to_follow(changed, partial(_is_changed, state)))
        entity: Entity | None = state.mapper.local_table.info.get(INFO)  # type: ignore[attr-defined]  # a Table's; others have none
        if entity is None:
            continue
        if _hides_old(state, entity, is_delete=state in session._deleted):
            changes.before[state] = _before(session, state, entity)
        elif entity.renaming:  # the flush will put the new values in their place, and remember no old ones
            names, loaded = _attribute_names(state.mapper, entity), {**state.dict, **state.committed_state}
            changes.before[state] = {column: loaded[names[column]] for column in entity.renaming}
    for state in list(session._deleted):
        table: Any = state.mapper.local_table
        entity = table.info.get(INFO)
        if entity is not None and state not in changes.before and _hides_old(state, entity, is_delete=True):
            changes.before[state] = _before(session, state, entity)
        for parent in _parents(state.mapper):
            row = {e.column: _attribute(state, e.column) for fk in dependents(parent) for e in fk.elements}
            session.connection().execute(
                select(*parent.primary_key.columns).where(*(c == v for c, v in row.items())).with_for_update()
            )
            _follow(session, parent, [row], changes)


def _attribute(state: Any, column: Column[Any]) -> Any:
    return getattr(state.obj(), state.mapper.get_property_by_column(column).key)


def _is_changed(state: Any, column: Column[Any]) -> bool:
    if not state.mapper.columns.contains_column(column):
        return False
    name = state.mapper.get_property_by_column(column).key
    return name in state.committed_state and state.committed_state[name] != state.dict.get(name)


def _hides_old(state: Any, entity: Entity, *, is_delete: bool) -> bool:
    for column, name in _attribute_names(state.mapper, entity).items():
        if name in state.committed_state:
            if _is_unknown(state.committed_state[name]):
                return True
        elif (is_delete or column in entity.renaming) and name not in state.dict:
            return True
    return False


def _before(session: Session, state: Any, entity: Entity) -> Row:
    """The keys of a row as they are, held until the transaction ends; empty where there is no such row."""
    match = (c == v for c, v in zip(entity.primary.columns, state.key[1], strict=True))
    found = session.connection().execute(select(*entity.key_columns).where(*match).with_for_update()).one_or_none()
    return dict(zip(entity.key_columns, found, strict=True)) if found is not None else {}


def dependents(table: Table, *, on: str = "ondelete") -> list[ForeignKeyConstraint]:
    """Foreign keys onto *table* by which PostgreSQL changes rows of a cached table, or of one on the way to it.

    *on* says what happens to a row of *table*: ``ondelete``, or ``onupdate`` of what they refer to.
    """
    table = table.metadata.tables.get(table.key, table)  # not a statement's annotated copy
    among = len(table.metadata.tables)  # a module that is imported later brings more
    known: tuple[int, list[ForeignKeyConstraint]] | None = table.info.get(f"shardkit_{on}")
    if known is None or known[0] != among:
        known = table.info[f"shardkit_{on}"] = (among, [fk for fk in _acting(table, on) if cached_below(fk, on=on)])
    return known[1]


def cached_below(constraint: ForeignKeyConstraint, *, on: str = "ondelete") -> set[str]:
    """Names of the cached tables that PostgreSQL changes rows of because of *constraint*."""
    below: dict[Table, None] = {}
    todo = [constraint.table]
    while todo:
        table = todo.pop()
        if table not in below:
            below[table] = None
            todo += [fk.table for fk in _acting(table, on)]
    return {table.name for table in below if INFO in table.info}


def _acting(table: Table, on: str) -> list[ForeignKeyConstraint]:
    return [
        constraint
        for other in table.metadata.tables.values()
        for constraint in other.foreign_key_constraints
        if constraint.referred_table is table and (getattr(constraint, on) or "").upper() in _ACTS
    ]


def _parents(mapper: Mapper[Any]) -> list[Table]:
    return [table for table in mapper.tables if isinstance(table, Table) and dependents(table)]


def _told_to_follow(table: Any, is_changed: Callable[[Column[Any]], bool]) -> Iterator[str]:
    """Cached tables whose rows PostgreSQL changes when those columns of *table* that foreign keys refer to are updated."""
    if isinstance(table, Table):
        for constraint in dependents(table, on="onupdate"):
            if any(is_changed(element.column) for element in constraint.elements):
                yield from cached_below(constraint, on="onupdate")


def _follow(session: Session, table: Table, rows: Sequence[Row], changes: Changes, seen: set[Any] | None = None) -> None:
    """Remember what hangs on *rows*; once for each row, for one may hang on itself."""
    seen = set() if seen is None else seen
    for constraint in dependents(table):
        child: Any = constraint.table
        entity: Entity | None = child.info.get(INFO)
        wanted = dict.fromkeys(entity.key_columns if entity is not None else ())
        wanted |= dict.fromkeys(e.column for fk in dependents(child) for e in fk.elements)
        pointing = [element.parent for element in constraint.elements]
        pointed = [tuple(row[element.column] for element in constraint.elements) for row in rows]
        found = session.connection().execute(
            # locked: nobody adds a row below one that is about to go
            select(*wanted).where(tuple_(*pointing).in_(pointed)).with_for_update()
        )
        children: list[Row] = [dict(zip(wanted, row, strict=True)) for row in found]
        if entity is not None:
            for row in children:
                changes.add(entity.names_of(row))
        if (constraint.ondelete or "").upper() == "CASCADE":
            fresh = {(child.name, *row.values()): row for row in children}
            fresh = {known_by: row for known_by, row in fresh.items() if known_by not in seen}
            seen |= fresh.keys()
            if fresh:
                _follow(session, child, list(fresh.values()), changes, seen)


def gather(session: Session, context: UOWTransaction, changes: Changes) -> None:
    """After a flush: the names of every row it wrote, by their old and their new values."""
    for state, (is_delete, list_only) in context.states.items():
        if list_only and not (is_delete and state in session._deleted):  # else a new object took its row: one UPDATE
            continue
        entity: Entity | None = state.mapper.local_table.info.get(INFO)
        if entity is not None:
            _gather_one(session, state, entity, changes, is_delete=is_delete)
        if is_delete and state not in session._deleted:
            for fk in chain.from_iterable(map(dependents, _parents(state.mapper))):
                changes.unknown |= cached_below(fk)


def _gather_one(session: Session, state: Any, entity: Entity, changes: Changes, *, is_delete: bool) -> None:
    names = _attribute_names(state.mapper, entity)
    values, before = state.dict, state.committed_state
    new = {column: values.get(name, _UNKNOWN) for column, name in names.items()}
    old = {column: before[name] if name in before else new[column] for column, name in names.items()}
    old |= changes.before.pop(state, {})
    if state.key is not None:
        old |= dict(zip(entity.primary.columns, state.key[1], strict=True))
        new |= {c: v for c, v in old.items() if c in entity.primary.columns and new[c] is _UNKNOWN}
    if is_delete:
        changes.add(entity.names_of(_complete(entity, old, changes)))
        return
    if any(_is_unknown(value) for value in new.values()):
        new = _from_database(session, entity, new)
    if state.key is None:
        changes.add(entity.names_of(new))
        return
    changed = {c for c in names if c in old and old[c] is not new[c] and old[c] != new[c]} | entity.reordering
    keys = [k for k in entity.all_keys if k.listing is None or changed.intersection((*k.columns, *k.order, entity.tenant))]
    changes.add(entity.names_of(new, keys))
    if changed:
        changes.add(entity.names_of(_complete(entity, old, changes), keys))


def _is_unknown(value: Any) -> bool:
    return isinstance(value, LoaderCallableStatus | ClauseElement) or hasattr(value, "__clause_element__")


def _complete(entity: Entity, row: dict[Column[Any], Any], changes: Changes) -> Row:
    """*row*, where an old value was never loaded: the keys it is part of cannot be told."""
    missing = [c for c, value in row.items() if _is_unknown(value)]
    if not entity.named.isdisjoint(missing):
        changes.unknown.add(entity.table.name)
    if missing:
        return {c: None if c in missing else v for c, v in row.items()}
    return row


def _from_database(session: Session, entity: Entity, row: dict[Column[Any], Any]) -> dict[Column[Any], Any]:
    """Values that PostgreSQL made in this flush, read back."""
    found = session.connection().execute(select(*row).where(*(column == row[column] for column in entity.primary.columns)))
    return dict(zip(row, found.one(), strict=True))


def _attribute_names(mapper: Mapper[Any], entity: Entity) -> dict[Column[Any], str]:
    if mapper is entity.mapper:
        return entity.key_attributes
    return {column: mapper.get_property_by_column(column).key for column in entity.key_columns}


def with_keys(statement: Insert | Update | Delete, params: Any, changes: Changes) -> tuple[Any, Entity | None]:
    """*statement*, giving back the keys of the rows it changes if it is one on a cached table and can do so."""
    table: Any = statement.table
    info = getattr(table, "info", {})
    if isinstance(statement, Delete) and isinstance(table, Table):
        for fk in dependents(table):
            changes.unknown |= cached_below(fk)
    elif isinstance(statement, Update):
        updated = _updated(statement, params)
        changes.unknown.update(_told_to_follow(table, lambda column: not updated.isdisjoint((column.key, column.name))))
    entity: Entity | None = info.get(INFO)
    if entity is None:
        return statement, None
    if statement._returning or _hides_old_keys(statement, params, entity):
        changes.unknown.add(entity.table.name)
        return statement, None
    return statement.returning(*entity.key_columns), entity


def _hides_old_keys(statement: Any, params: Any, entity: Entity) -> bool:
    """Whether the rows' keys before it are not those that RETURNING gives after it."""
    if isinstance(statement, Delete):
        return False
    if isinstance(statement, Update) and isinstance(params, Sequence):
        return True  # executemany, which returns nothing
    keys = {name for column in entity.key_columns for name in (column.name, entity.key_attributes[column])}
    if isinstance(statement, Insert):
        clause: Any = statement._post_values_clause
        updated = dict(getattr(clause, "update_values_to_set", None) or ())
        if updated and any(column.computed is not None for column in entity.renaming):
            return True
        return not {getattr(k, "name", k) for k in updated}.isdisjoint(keys)
    if entity.renaming:
        return True
    return statement._multi_values != () or not _updated(statement, params).isdisjoint(keys)


def _updated(statement: Any, params: Any) -> set[Any]:
    """Names of what an UPDATE sets."""
    names = {getattr(k, "key", k) for k in (statement._values or {})}
    names |= {getattr(k, "key", k) for k, _ in (getattr(statement, "_ordered_values", None) or ())}
    if isinstance(params, Sequence):  # by their primary keys
        given = {name for row in params for name in row}
        return names | given - {name for c in statement.table.primary_key for name in (c.key, c.name)}
    return names | set(params or ())


def gather_returned(result: Any, entity: Entity, changes: Changes) -> Any:
    """Take the keys out of *result* of a statement made by ``with_keys``; what is left says the ``rowcount``."""
    for row in result.all():
        changes.add(entity.names_of(dict(zip(entity.key_columns, row, strict=True))))
    return getattr(result, "raw", None) or result


def settle(driver: Any, changes: Changes, writer: Writer) -> None:
    """Before COMMIT, with everything flushed: refuse what is unknown, mark the rest."""
    unknown = (changes.unknown | driver.unannounced) - changes.vouched
    if unknown:
        raise UnknownKeysError(
            f"this transaction changed the cached table {', '.join(sorted(unknown))} by a statement that does not tell which "
            "rows (raw SQL, Core on the connection, a key column in a bulk UPDATE, RETURNING of your own, a cascade): it is "
            "rolled back. Name them with kit.cache.invalidate(Entity, key, session=session) before COMMIT, or change objects"
        )
    if changes.names:
        writer.place(driver, changes.names)
        changes.placed |= changes.names
        changes.names = set()


def vouch(changes: Changes, entity: Entity, names: Iterable[str]) -> None:
    """The program itself says which rows of *entity* its statements change."""
    changes.vouched.add(entity.table.name)
    changes.add(names)
