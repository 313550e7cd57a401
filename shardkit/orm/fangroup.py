"""Plans of statements with aggregates or GROUP BY: servers send groups with partial results, which are merged here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import REAL, Double, Float, Integer, case, cast, distinct, func, literal_column
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import (
    BindParameter,
    ColumnClause,
    FunctionFilter,
    TypeCoerce,
    UnaryExpression,
    _textual_label_reference,
)
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.selectable import Select

from shardkit.core.merge import DISTINCT
from shardkit.orm.fancheck import AGGREGATES, DistinctValues, has_aggregate, refuse
from shardkit.orm.fanexpr import bare, by_code_points, check_collations, direction, named, order_key, same
from shardkit.orm.fanhaving import condition_of
from shardkit.orm.fanplan import Aggregate, Plan, compile_for

_SERVERS: Final = {"every": "bool_and"}
ROWS: Final = "count(*)"
_REAL_DIGITS: Final = 24
"""Binary ones: FLOAT(24) is real in PostgreSQL."""
_PARTIAL: Final = {DISTINCT: "array_agg(DISTINCT {})"}
"""What servers compute for a partial result that has another name than its function."""
_ALIKE: Final = frozenset({"min", "max", "bool_and", "bool_or", "every"})
"""Aggregates that are the same of distinct values."""


def grouped(statement: Select[Any], key: Any) -> Plan:
    """Plan of a statement with aggregates or GROUP BY: servers send groups with partial results."""
    groups = [_group(clause, statement) for clause in statement._group_by_clauses]
    wanted = [_Want.of(column, groups) for column in statement._raw_columns]
    shown = len(wanted)

    def place(expression: Any) -> int:
        """The output that is *expression*, which is added where it was not selected."""
        found = next((n for n, want in enumerate(wanted) if same(want.element, bare(expression))), None)
        if found is None:
            found = len(wanted)
            wanted.append(_Want.of(expression, groups))
        return found

    directions = [direction(clause, statement) for clause in statement._order_by_clauses]
    orders = [order_key(place(directed[0]), directed) for directed in directions]
    if statement._distinct and any(order.column >= shown for order in orders):
        raise refuse("with DISTINCT, what is in ORDER BY has to be selected too")
    conditions = [condition_of(clause, place) for clause in statement._having_criteria]
    arguments: list[Any] = []
    partials: list[tuple[str, int | None]] = []
    code_points: set[int] = set()
    outputs: list[int | Aggregate] = []
    for want in wanted:
        if want.group is not None:
            outputs.append(want.group)
            continue
        first, names = len(groups) + len(partials), ("sum", "count") if want.name == "avg" else (want.name,)
        if want.name in ("min", "max"):
            check_collations(want.argument)
            if by_code_points(want.argument):
                code_points.add(len(partials))
        if want.argument is None:
            partials.append((want.name, None))
        else:
            partials += [(name, len(arguments)) for name in names]
            arguments.append(want.argument)
        outputs.append(Aggregate(want.name, tuple(range(first, first + len(names))), want.default))
    if groups:  # one hash table over all branches
        branch = [*groups, *arguments]
        sums = (
            ROWS if n is None else _PARTIAL.get(name, f"{name}({{}})").format(f"c{len(groups) + n}") for name, n in partials
        )
        select = ", ".join([*(f"c{n}" for n in range(len(groups))), *sums])
    else:  # rows do not have to travel through the union: 9 ms instead of 14 for 128,000 of them
        branch, select = [func.count() if n is None else _partial(name, arguments[n]) for name, n in partials], "*"
    labelled = [e.label(f"shardkit_g{n}") for n, e in enumerate(branch)]
    inner = statement.with_only_columns(*labelled, maintain_column_froms=True)
    inner = inner.group_by(None).order_by(None).limit(None).offset(None)
    inner._having_criteria, inner._distinct = (), False
    compiled = compile_for(inner, key)
    return Plan(
        compiled=compiled,
        width=len(labelled),
        select=select,
        group_by=" GROUP BY " + ", ".join(str(n + 1) for n in range(len(groups))) if groups else "",
        orders=tuple(orders),
        visible=tuple(range(shown)),
        names=tuple(want.label for want in wanted[:shown]),
        types=tuple(want.element.type for want in wanted[:shown]),
        outputs=tuple(outputs),
        partials=tuple(name for name, _ in partials),
        code_points=frozenset(code_points),
        distinct=statement._distinct,
        having=(lambda row, values: all(one(row, values) for one in conditions)) if conditions else None,
        cache_key=key,
    )


def _group(clause: Any, statement: Select[Any]) -> Any:
    """The expression of one GROUP BY clause. A name of both a selected column and a table's means the table's, in GROUP BY."""
    expression = named(clause, statement)
    name = str(getattr(clause, "element", ""))
    computed = isinstance(clause, _textual_label_reference) and not isinstance(expression, ColumnClause)
    if computed and any(name in source.c for source in statement.get_final_froms()):
        raise refuse(f"GROUP BY {name!r} is the name of a column, and of a selected expression: pass the expression itself")
    return expression


@dataclass(frozen=True, slots=True, kw_only=True)
class _Want:
    """A column of a grouped statement: one of the groups' keys, or an aggregate of an argument."""

    element: Any
    label: str
    group: int | None = None
    name: str = ""
    argument: Any = None
    """None: rows are counted."""
    default: BindParameter[Any] | None = None

    @classmethod
    def of(cls, column: Any, groups: Sequence[Any]) -> _Want:
        element = bare(column)
        label = str(getattr(column, "name", None) or getattr(element, "name", None) or "anon")
        for number, group in enumerate(groups):
            if same(element, group):
                return cls(element=element, label=label, group=number)
        found = _aggregate(element)
        if found is None:
            raise refuse(
                f"{label!r} is an expression over aggregates: select its parts, and combine them in the program"
                if has_aggregate(element)
                else f"{label!r} is neither in GROUP BY nor an aggregate"
            )
        name, argument, default = found
        return cls(element=element, label=label, name=name, argument=argument, default=default)


def _aggregate(element: Any) -> tuple[str, Any, BindParameter[Any] | None] | None:
    """Name, argument and default of ``agg(x)``, ``agg(x) FILTER (WHERE ...)`` or ``coalesce(agg(x), value)``."""
    condition = None
    if isinstance(element, TypeCoerce):
        return _aggregate(element.clause)
    if isinstance(element, FunctionElement) and element.name.lower() == "coalesce":
        first, *others = element.clauses
        found = _aggregate(first)
        if found is None or found[2] is not None or len(others) != 1 or not isinstance(others[0], BindParameter):
            return None
        return (*found[:2], others[0])
    if isinstance(element, FunctionFilter):
        element, condition = element.func, element.criterion
    if not isinstance(element, FunctionElement) or element.name.lower() not in AGGREGATES:
        return None
    arguments = list(element.clauses)
    argument = arguments[0] if arguments else literal_column("*")
    name = str(element.name).lower()
    if isinstance(argument, UnaryExpression) and argument.operator is operators.distinct_op:
        argument = argument.element
        if name == "count":
            name = DISTINCT
        elif name not in _ALIKE:
            raise refuse(f"{name}(DISTINCT ...) of all rows is not made from those of the shards")
    if len(arguments) > 1:
        raise refuse(f"{name}() of several arguments is not merged")
    if getattr(argument, "is_literal", False) and argument.name == "*":
        if condition is None:
            return name, None, None  # counting rows is a third cheaper than counting a constant
        argument = literal_column("1", Integer)
    if has_aggregate(argument):
        raise refuse("an aggregate of an aggregate is not merged")
    if name == "avg" and _is_real(argument.type):
        argument = cast(argument, Double)  # avg() has that one's digits, and the sums of real have not
    if condition is not None:
        argument = case((condition, argument))  # aggregates leave NULLs out
    return _SERVERS.get(name, name), argument, None


def _is_real(kind: Any) -> bool:
    return isinstance(kind, REAL) or (isinstance(kind, Float) and kind.precision is not None and kind.precision <= _REAL_DIGITS)


def _partial(name: str, argument: Any) -> Any:
    """A partial result as an expression of a shard."""
    return DistinctValues(distinct(argument)) if name == DISTINCT else getattr(func, name)(argument)
