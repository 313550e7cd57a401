"""HAVING over merged groups, in PostgreSQL's three-valued logic: NULL is neither true nor false, and keeps no group.

A condition is compiled once into closures over a group's outputs and the statement's parameters. Only comparisons that Python
decides as PostgreSQL does are taken; everything else is refused with the reason.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import (
    BinaryExpression,
    BindParameter,
    BooleanClauseList,
    False_,
    Grouping,
    Null,
    True_,
    UnaryExpression,
)

from shardkit.core.merge import Row, instant
from shardkit.db.scatter import DIALECT
from shardkit.errors import FanOutRefusedError
from shardkit.orm.fancheck import refuse

Values = Callable[[BindParameter[Any]], Any]
"""Gives a parameter's value in the statement at hand."""
Operand = Callable[[Row, Values], Any]
Condition = Callable[[Row, Values], bool | None]
Place = Callable[[Any], int]
"""The output that an aggregate or a group's key is; a new one if need be. Raises FanOutRefusedError for anything else."""

_COMPARISONS: Final[dict[Any, Callable[[Any, Any], bool]]] = {
    operators.eq: operator.eq,
    operators.ne: operator.ne,
    operators.lt: operator.lt,
    operators.le: operator.le,
    operators.gt: operator.gt,
    operators.ge: operator.ge,
}
_PLAIN: Final = (bool, bytes, date, datetime, time, UUID)


def condition_of(clause: Any, place: Place) -> Condition:
    """*clause* as a function of a group's outputs. Raises FanOutRefusedError for what is not known to come out right here."""
    match clause:
        case Grouping():
            return condition_of(clause.element, place)
        case BooleanClauseList():
            parts = [condition_of(part, place) for part in clause.clauses]
            decide = _all if clause.operator is operators.and_ else _any
            return lambda row, values: decide(part(row, values) for part in parts)
        case UnaryExpression(operator=operators.inv):
            inner = condition_of(clause.element, place)
            return lambda row, values: _not(inner(row, values))
        case BinaryExpression():
            return _binary(clause, place)
        case UnaryExpression() if clause.operator in (operators.is_true, operators.is_false):
            truth = _operand(clause.element, place)
            wanted = clause.operator is operators.is_true
            return lambda row, values: None if (found := truth(row, values)) is None else found is wanted
    return _operand(clause, place)


def _binary(clause: BinaryExpression[Any], place: Place) -> Condition:
    left = _operand(clause.left, place)
    match clause.operator:
        case found if found in _COMPARISONS:
            right, compare = _operand(clause.right, place), _COMPARISONS[found]
            return lambda row, values: _compare(compare, left(row, values), right(row, values))
        case operators.is_ | operators.is_not:
            same = _operand(clause.right, place)
            turned = clause.operator is operators.is_not
            return lambda row, values: (left(row, values) is same(row, values)) is not turned
        case operators.between_op | operators.not_between_op:
            low, high = (_operand(bound, place) for bound in clause.right.clauses)

            def between(row: Row, values: Values) -> bool | None:
                value = left(row, values)
                return _all((_compare(operator.ge, value, low(row, values)), _compare(operator.le, value, high(row, values))))

            turned = clause.operator is operators.not_between_op
            return (lambda row, values: _not(between(row, values))) if turned else between
        case operators.in_op | operators.not_in_op if isinstance(clause.right, BindParameter):
            listed = _parameter(clause.right)

            def among(row: Row, values: Values) -> bool | None:
                value = left(row, values)
                return _any(_compare(operator.eq, value, one) for one in listed(row, values))

            return among if clause.operator is operators.in_op else lambda row, values: _not(among(row, values))
    raise refuse("HAVING over merged groups takes comparisons, IS NULL, BETWEEN and IN, combined by AND, OR and NOT")


def _operand(element: Any, place: Place) -> Operand:
    match element:
        case Grouping():
            return _operand(element.element, place)
        case BindParameter():
            return _parameter(element)
        case Null():
            return lambda _row, _values: None
        case True_() | False_():
            known = isinstance(element, True_)
            return lambda _row, _values: known
    at = place(element)
    return lambda row, _values: row[at]


def _parameter(bind: BindParameter[Any]) -> Operand:
    """What would be sent for *bind*."""
    change = bind.type._cached_bind_processor(DIALECT)
    if bind.expanding:
        return lambda _row, values: [change(one) if change else one for one in values(bind)]
    return lambda _row, values: change(values(bind)) if change else values(bind)


def _all(parts: Iterable[bool | None]) -> bool | None:
    found: bool | None = True
    for part in parts:
        if part is False:
            return False
        if part is None:
            found = None
    return found


def _any(parts: Iterable[bool | None]) -> bool | None:
    return _not(_all(_not(part) for part in parts))


def _not(value: bool | None) -> bool | None:  # noqa: FBT001  a value of SQL's logic, not an option
    return None if value is None else not value


def _compare(compare: Callable[[Any, Any], bool], one: Any, other: Any) -> bool | None:
    if one is None or other is None:
        return None
    return compare(*_comparable(one, other, ordered=compare not in (operator.eq, operator.ne)))


def _comparable(one: Any, other: Any, *, ordered: bool) -> tuple[Any, Any]:
    """Both as values that Python compares as PostgreSQL does, NaN above every number."""
    if _is_number(one) and _is_number(other):
        if isinstance(one, float) or isinstance(other, float):
            one, other = float(one), float(other)
        return tuple((1, 0) if value != value else (0, value) for value in (one, other))  # type: ignore[return-value]  # two
    if isinstance(one, str) and isinstance(other, str):
        if ordered:
            raise FanOutRefusedError("HAVING orders text, and only PostgreSQL knows a collation's order: nothing was merged")
        return one, other
    if isinstance(one, datetime) and isinstance(other, datetime) and _zoned(one) and _zoned(other):
        return instant(one), instant(other)
    if type(one) is type(other) and isinstance(one, _PLAIN) and _zoned(one) == _zoned(other):
        return one, other
    raise FanOutRefusedError(
        f"HAVING compares {type(one).__name__} with {type(other).__name__}, which only PostgreSQL can do; nothing was merged"
    )


def _zoned(value: Any) -> bool:
    """Whether it says its time zone; only a server's settings could say which one is meant otherwise."""
    return getattr(value, "tzinfo", None) is not None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool)
