"""Reads a select's expressions as a fan-out needs them: what a name stands for, what two have in common, how rows sort."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import (
    BinaryExpression,
    CollationClause,
    ColumnClause,
    Grouping,
    Label,
    TextClause,
    UnaryExpression,
    _label_reference,
    _textual_label_reference,
)

from shardkit.core.merge import OrderKey
from shardkit.orm.fancheck import refuse, walk

_CODE_POINT_COLLATIONS: Final = frozenset({"C", "POSIX", "C.UTF-8", "C.utf8", "ucs_basic", "pg_c_utf8"})
Direction = tuple[Any, bool, bool]
"""An expression of ORDER BY, whether it is descending, and whether NULLs come first."""


def direction(clause: Any, statement: Any) -> Direction:
    """Expression, whether it is descending, and whether NULLs come first, of one ORDER BY clause."""
    descending, nulls_first = False, None
    while isinstance(clause, UnaryExpression | _label_reference | Grouping):
        if isinstance(clause, UnaryExpression):
            match clause.modifier:
                case operators.desc_op:
                    descending = True
                case operators.nulls_first_op:
                    nulls_first = True
                case operators.nulls_last_op:
                    nulls_first = False
                case operators.asc_op:
                    pass
                case _:
                    break
        clause = clause.element
    expression = named(clause, statement)
    check_collations(expression)
    return expression, descending, descending if nulls_first is None else nulls_first


def check_collations(expression: Any) -> None:
    """Refuse an *expression* whose order another collation than that of code points may have a say in."""
    for part in walk(expression):
        holder = part if isinstance(part, CollationClause) else getattr(part, "type", None)
        collation = getattr(holder, "collation", None)
        if collation is not None and collation not in _CODE_POINT_COLLATIONS:
            raise refuse(f'only PostgreSQL can order by the collation "{collation}": use .collate("C")')


def by_code_points(expression: Any) -> bool:
    """Whether *expression* says itself that it is ordered by code points, whatever its server's collation is."""
    said = isinstance(expression, BinaryExpression) and expression.operator is operators.collate
    return said or (isinstance(expression, ColumnClause) and getattr(expression.type, "collation", None) is not None)


def named(clause: Any, statement: Any) -> Any:
    """The expression of *clause*, which may be the name of a selected column."""
    while isinstance(clause, _label_reference):
        clause = clause.element
    if isinstance(clause, TextClause):
        raise refuse("GROUP BY and ORDER BY take expressions, or names of selected columns; SQL text cannot be looked into")
    if isinstance(clause, _textual_label_reference):
        found = next((c for c in statement._raw_columns if getattr(c, "name", None) == clause.element), None)
        clause = found if found is not None else statement.selected_columns.get(clause.element)
        if clause is None:
            raise refuse("GROUP BY and ORDER BY take expressions, or names of selected columns; SQL text")
    clause = bare(clause)
    if isinstance(clause, ColumnClause) and clause.is_literal and clause.name.isdigit():
        raise refuse("GROUP BY and ORDER BY take expressions, or names of selected columns, and no numbers of columns")
    return clause


def bare(element: Any) -> Any:
    """*element* without its label and brackets."""
    while isinstance(element, Label | Grouping):
        element = element.element
    return element


def same(one: Any, other: Any) -> bool:
    """Whether two expressions are the same."""
    return one is other or bool(one.compare(other))


def order_key(column: int, directed: Direction) -> OrderKey:
    """How rows sort by *column*, which has the values of *directed*."""
    expression, descending, nulls_first = directed
    return OrderKey(column, descending, nulls_first, code_points=by_code_points(expression))
