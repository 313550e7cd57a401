"""Which statements shards may answer each for itself: whatever the merge could get wrong is refused, with the reason.

A tenant lives in one shard, so what stays inside a tenant stays inside a shard. A statement is let through if each of its
sharded tables is tied to the others by equality of tenant or along a foreign key, and every function in it is known.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from sqlalchemy import Table
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.sql import operators
from sqlalchemy.sql.dml import UpdateBase
from sqlalchemy.sql.elements import (
    BinaryExpression,
    BindParameter,
    BooleanClauseList,
    ColumnClause,
    Grouping,
    Label,
    Over,
    TextClause,
    WithinGroup,
)
from sqlalchemy.sql.functions import FunctionElement, array_agg
from sqlalchemy.sql.selectable import (
    CTE,
    Alias,
    AliasedReturnsRows,
    CompoundSelect,
    Join,
    ScalarSelect,
    Select,
    SelectBase,
    Subquery,
    TableClause,
    TableSample,
    TextualSelect,
)

from shardkit.core.names import REFERENCE_SCHEMA
from shardkit.db.classify import PURE_FUNCTIONS
from shardkit.db.scatter import SHARD_MARK
from shardkit.errors import FanOutRefusedError

AGGREGATES: Final = frozenset({"count", "sum", "min", "max", "avg", "bool_and", "bool_or", "every"})
_OTHER_AGGREGATES: Final = frozenset({"array_agg", "string_agg", "json_agg", "jsonb_agg", "any_value"})
_EXTENSIONS: Final = ("_pre_columns_clause", "_post_select_clause", "_post_criteria_clause", "_post_body_clause")


class DistinctValues(array_agg[Any]):
    """The distinct values of an argument in one shard, which make up those of all shards."""

    name = "array_agg"
    _register = False  # func.array_agg stays what it was
    inherit_cache = True


def refuse(reason: str) -> FanOutRefusedError:
    """The error for a statement that is not sent because of *reason*."""
    return FanOutRefusedError(f"{reason}: it was not sent to any shard")


def walk(element: Any, *, into_selects: bool = True) -> Iterator[Any]:
    """*element* and all its parts; those of nested selects too, if asked for."""
    yield element
    for child in element.get_children():
        if into_selects or not isinstance(child, SelectBase | ScalarSelect | Subquery):
            yield from walk(child, into_selects=into_selects)


def value_of(clause: Any, given: Mapping[str, Any]) -> int | None:
    """The number in a LIMIT or OFFSET clause, whose parameter may be one of *given*."""
    if clause is None:
        return None
    value = given.get(clause.key, clause.effective_value) if isinstance(clause, BindParameter) else None
    if type(value) is not int or value < 0:
        raise refuse("LIMIT and OFFSET have to be numbers")
    return value


def check(statement: Any) -> None:
    """Raise FanOutRefusedError if shards could not answer the resolved Core select *statement* each for itself."""
    for part in walk(statement):
        _check_reads(part)
        _check_merges(part)
    if not any(map(_is_anchored, statement.get_final_froms())):
        raise refuse(
            "its rows are not those of a sharded table (or are kept without one, by an outer join), so every shard would give "
            "them again: read reference tables in a session"
        )
    _Ties(statement).check()


def check_reads(statement: Any) -> None:
    """Raise FanOutRefusedError if the resolved Core select *statement* does anything else than read a shard."""
    for part in walk(statement):
        _check_reads(part)


def _check_reads(part: Any) -> None:
    match part:
        case TextClause() | TextualSelect():
            raise refuse("SQL text cannot be looked into, so nobody knows how its answers would have to be merged")
        case UpdateBase():
            raise refuse("a fan-out only reads; write with kit.begin(tenant), or kit.transaction(...) for several tenants")
        case Select() | CTE() if part._prefixes or part._suffixes or getattr(part, "_statement_hints", None):
            raise refuse("SQL text before or after a SELECT cannot be looked into")
        case Select() if part._for_update_arg is not None:
            raise refuse("a fan-out only reads: rows of several shards cannot be locked together")
        case FunctionElement() if str(getattr(part, "name", "")).lower() not in PURE_FUNCTIONS:
            name = str(getattr(part, "name", "")) or type(part).__name__
            raise refuse(f"whether {name}() only reads, and one row or many, is not known")
        case ColumnClause(is_literal=True) if part.name not in ("*", SHARD_MARK) and not part.name.isdigit():
            raise refuse("SQL text cannot be looked into, so nobody knows how its answers would have to be merged")
        case Table() if part.schema not in (None, REFERENCE_SCHEMA):
            raise refuse(f"table {part.fullname} is not in the shards")


def _check_merges(part: Any) -> None:
    match part:
        case DistinctValues():
            pass  # ours: the values themselves are merged
        case Over() | WithinGroup() | aggregate_order_by():
            raise refuse("window functions and ordered aggregates look at all rows, which no shard has")
        case CompoundSelect():
            raise refuse("UNION and its like are not merged: fan out each part")
        case CTE(recursive=True):
            raise refuse("a recursive query is not merged")
        case TableSample():
            raise refuse("TABLESAMPLE is not merged")
        case Select() if part._fetch_clause is not None:
            raise refuse("FETCH FIRST is not merged: use limit()")
        case Select() if part._distinct_on or any(getattr(part, name, None) is not None for name in _EXTENSIONS):
            raise refuse("DISTINCT ON and other extensions of SELECT are not merged")
        case FunctionElement() if part.name.lower() in _OTHER_AGGREGATES:
            raise refuse(f"{part.name.lower()}() of all rows is not made from those of the shards")


def has_aggregate(element: Any) -> bool:
    """Whether *element*, nested selects left out, computes something over many rows."""
    parts = walk(element, into_selects=False)
    return any(isinstance(part, FunctionElement) and part.name.lower() in AGGREGATES for part in parts)


def _is_anchored(source: Any) -> bool:
    """Whether every row of *source* is made from a row of a sharded table, which is in one shard only."""
    match source:
        case Join():
            left, right = _is_anchored(source.left), _is_anchored(source.right)
            if source.full:
                return left and right
            return left if source.isouter else left or right
        case Table():
            return source.schema is None
        case Subquery() | CTE():
            return isinstance(source.element, Select) and any(map(_is_anchored, source.element.get_final_froms()))
        case Alias():
            return _is_anchored(source.element)
    return False


class _Ties:
    """Which sharded tables of a statement are bound to the same tenant (union-find over its FROM elements).

    A leaf is a FROM element at its place: a select that stands in a statement twice has rows of its own each time. A scope says
    which place a table's name means inside a select: a subquery over a table of its outer query has rows of its own.
    """

    def __init__(self, statement: Any) -> None:
        self._statement = statement
        self._parent: dict[Any, Any] = {}
        self._visit(statement, {}, ())

    def check(self) -> None:
        """Refuse a statement whose tables fall apart."""
        if len({self._root(leaf) for leaf in self._parent}) > 1:
            raise refuse(
                "it combines rows of different tenants, which may live in different shards: join along foreign keys, "
                "or on tenant_id as well"
            )

    def _visit(self, element: Any, scope: _Scope, place: _Place) -> None:
        if isinstance(element, Select):
            place = (*place, id(element))
            scope = self._read(element, scope, place)
        elif isinstance(element, AliasedReturnsRows):
            place = _inside(element, scope.get(element, (element, place)))
            scope = scope if element._is_lateral else {}
        # What a CTE's alias is an alias of is another place.
        children = (element.element,) if isinstance(element, AliasedReturnsRows) else element.get_children()
        for child in children:
            self._visit(child, scope, place)

    def _read(self, select: Select[Any], around: _Scope, place: _Place) -> _Scope:
        scope, own, conditions = _scope_of(select, around, place)
        for leaf in own:
            if _is_sharded(leaf[0]):
                self._root(leaf)
        pairs = [(_leaf(one, scope), _leaf(other, scope)) for c in conditions for one, other in _equalities(c)]
        for part, kept in [*((c, True) for c in conditions), *((column, False) for column in select._raw_columns)]:
            for one, inner, plain in _memberships(part, kept=kept):
                (column,) = inner.selected_columns
                there = (*place, id(inner))
                listed = _scope_of(inner, scope, there)[0]
                if plain or (_never_null(one, select, (scope, place)) and _never_null(column, inner, (listed, there))):
                    pairs.append((_leaf(one, scope), _leaf(column, listed)))
        ties = [(one[0], other[0]) for one, other in pairs if one and other and _binds(one, other)]
        for one, other in ties:
            self._parent[self._root(one)] = self._root(other)
        tied = any((one[1][: len(place)] == place) != (other[1][: len(place)] == place) for one, other in ties)
        if (
            select is not self._statement
            and not tied
            and _looks_at_many(select)
            and any(_holds_sharded(leaf[0]) for leaf in own)
        ):
            raise refuse(
                "a subquery that counts, groups, limits or removes duplicates would do so for each shard alone: tie it to "
                "the outer row by a foreign key or tenant_id"
            )
        return scope

    def _root(self, leaf: Any) -> Any:
        parent = self._parent.setdefault(leaf, leaf)
        return leaf if parent is leaf else self._root(parent)


_Place = tuple[Any, ...]
_Scope = dict[Any, tuple[Any, _Place]]


def _inside(source: Any, leaf: tuple[Any, _Place]) -> _Place:
    """Where what stands inside the FROM element *source* is."""
    return (*leaf[1], source)


def _around(place: _Place) -> _Place:
    """Where the select is in which one at *place* stands."""
    place = place[:-1]
    while place and not isinstance(place[-1], int):
        place = place[:-1]
    return place


def _scope_of(select: Select[Any], around: _Scope, place: _Place) -> tuple[_Scope, set[Any], list[Any]]:
    """What names mean inside *select*, its own FROM elements, and what must hold for its rows."""
    sources: list[Any] = []
    conditions: list[Any] = list(select._where_criteria)
    froms = select.get_final_froms()
    waiting = list(froms)
    while waiting:
        source = waiting.pop()
        if isinstance(source, Join):
            waiting += [source.left, source.right]
            conditions.append(source.onclause)
        else:
            sources.append(source)
    whole = [source for source in froms if not isinstance(source, Join) and source in around]
    if select._correlate_except is not None:
        correlated = set(whole) - set(select._correlate_except)
    elif not select._auto_correlate:
        correlated = set(whole) & set(select._correlate)
    else:  # SQLAlchemy by itself correlates to the select around this one only, and never a select's last FROM element
        correlated = {source for source in whole if len(froms) > 1 and around[source][1] == _around(place)}
    mine = {source: (source, place) for source in sources if source not in correlated}
    return {**around, **mine}, set(mine.values()), conditions


def _is_sharded(source: Any) -> bool:
    """Whether *source* is a table that every shard has its part of."""
    if isinstance(source, Alias):
        source = source.element
    return isinstance(source, TableClause) and source.schema is None


def _holds_sharded(source: Any) -> bool:
    return any(_is_sharded(part) for part in walk(source))


def _looks_at_many(select: Select[Any]) -> bool:
    return bool(
        select._limit_clause is not None
        or select._offset_clause is not None
        or select._distinct
        or select._group_by_clauses
        or select._having_criteria
        or any(has_aggregate(column) for column in select._raw_columns)
    )


def _equalities(condition: Any) -> Iterator[tuple[Any, Any]]:
    """Pairs of columns that *condition* makes equal in every row: ``a = b AND ...``."""
    match condition:
        case Grouping():
            yield from _equalities(condition.element)
        case BooleanClauseList() if condition.operator is operators.and_:
            for part in condition.clauses:
                yield from _equalities(part)
        case BinaryExpression() if condition.operator is operators.eq:
            yield condition.left, condition.right


def _memberships(element: Any, *, kept: bool) -> Iterator[tuple[Any, Select[Any], bool]]:
    """``a IN (SELECT b ...)``, wherever it stands: rows are compared by a and b and by nothing else.

    Third: whether it must be true for a row to be *kept*. Elsewhere it matters that NULL is in no list and out of none, which
    depends on all rows of the list.
    """
    match element:
        case Grouping():
            yield from _memberships(element.element, kept=kept)
        case BooleanClauseList() if element.operator is operators.and_:
            for part in element.clauses:
                yield from _memberships(part, kept=kept)
        case _:
            for part in walk(element, into_selects=False):
                if isinstance(part, BinaryExpression) and part.operator in (operators.in_op, operators.not_in_op):
                    inner = next((p for p in walk(part.right) if isinstance(p, Select)), None)
                    if inner is not None and len(inner.selected_columns) == 1:
                        yield part.left, inner, kept and part is element and part.operator is operators.in_op


def _never_null(column: Any, select: Select[Any], here: tuple[_Scope, _Place]) -> bool:
    """Whether *column* is one without NULLs, of a table that *select* itself reads and does not join from outside."""
    scope, place = here
    source = getattr(column, "table", None)
    if source not in scope or scope[source][1] != place or not isinstance(source, Table | Alias):
        return False
    outer = [
        part
        for found in select.get_final_froms()
        for part in walk(found)
        if isinstance(part, Join) and (part.isouter or part.full)
    ]
    sides = [side for join in outer for side in ((join.left, join.right) if join.full else (join.right,))]
    return not getattr(column, "nullable", True) and source not in {part for side in sides for part in walk(side)}


def _leaf(column: Any, scope: _Scope) -> tuple[Any, Any] | None:
    """FROM element at its place and table column that *column* is, through subqueries; None for any but a sharded table's."""
    while isinstance(column, Label | Grouping):
        column = column.element
    source = getattr(column, "table", None)
    if source not in scope:
        return None
    match source:
        case Subquery() | CTE():
            inner = source.element
            if not isinstance(inner, Select) or column.key not in inner.selected_columns:
                return None
            place = (*_inside(source, scope[source]), id(inner))
            return _leaf(inner.selected_columns[column.key], _scope_of(inner, {}, place)[0])
        case Alias(element=(Subquery() | CTE()) as inner) if column.key in inner.c:
            return _leaf(inner.c[column.key], {inner: (inner, _inside(source, scope[source]))})
        case Alias(element=TableClause() as table) | (TableClause() as table):
            return (scope[source], table.c.get(column.key, column)) if _is_sharded(source) else None
    return None


def _binds(one: tuple[Any, Any], other: tuple[Any, Any]) -> bool:
    """Whether equality of these columns makes their rows one tenant's."""
    (leaf1, column1), (leaf2, column2) = one, other
    if leaf1 == leaf2:
        return False
    return column1.name == column2.name == "tenant_id" or bool(_referred(column1) & _referred(column2))


def _referred(column: Any) -> frozenset[Any]:
    """*column* if it is a key, and the columns it refers to; a part of a key is none."""
    own = {column} if _is_whole_key(column) else set()
    return frozenset(
        own | {key.column for key in column.foreign_keys if len(key.constraint.elements) == 1 or _is_whole_key(key.column)}
    )


def _is_whole_key(column: Any) -> bool:
    return column.primary_key and len(column.table.primary_key.columns) == 1
