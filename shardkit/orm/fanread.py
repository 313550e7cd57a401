"""From a SQLAlchemy select to its fan-out plan, remembered by the statement's structure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy.orm import Bundle
from sqlalchemy.sql.elements import BindParameter
from sqlalchemy.sql.selectable import CompoundSelect, Select
from sqlalchemy.util import LRUCache

from shardkit.orm.fancheck import check_reads, has_aggregate, refuse
from shardkit.orm.fanexpr import Direction, bare, direction, order_key, same
from shardkit.orm.fangroup import grouped
from shardkit.orm.fanplan import SHARD, Plan, compile_for, key_of, types_of, with_shard
from shardkit.orm.fanunion import united

_PLANS: LRUCache[Any, Plan] = LRUCache(256)


def plan_of(statement: Any) -> Plan:
    """The plan of *statement*, remembered by its structure. Raises FanOutRefusedError."""
    return _remembered(statement, _plan)


def each_plan(statement: Any) -> Plan:
    """A plan that merges nothing: the one value of every shard, and its number."""
    return _remembered(statement, _each)


def _remembered(statement: Any, make: Callable[[Any, Any], Plan]) -> Plan:
    if isinstance(statement, CompoundSelect) and make is _plan:
        make = _union
    elif not isinstance(statement, Select):
        raise refuse(f"a fan-out takes a select(), not {type(statement).__name__}")
    key = key_of(statement)
    if key is None:
        return make(statement, None)
    place = make, key.key, _equal_values(key.bindparams)
    known = _PLANS.get(place)
    if known is None:
        _PLANS[place] = known = make(statement, key)
    return known


def _equal_values(binds: Sequence[BindParameter[Any]]) -> tuple[int, ...]:
    """For each parameter the first one of the same value: a plan takes ``sum(x * 2)`` and ``sum(x * 2)`` for one, but the
    structure of ``sum(x * 2)`` and ``sum(x * 3)`` is no other.
    """
    firsts: dict[Any, int] = {}
    unhashable: list[tuple[Any, int]] = []
    found = []
    for place, bind in enumerate(binds):
        try:
            first = firsts.setdefault(bind.value, place)
        except TypeError:
            first = next((at for value, at in unhashable if value == bind.value), place)
            unhashable.append((bind.value, first))
        found.append(first)
    return tuple(found)


def _union(statement: Any, key: Any) -> Plan:
    return united(statement, key)


def _plan(statement: Select[Any], key: Any) -> Plan:
    if statement._fetch_clause is not None:
        raise refuse("FETCH FIRST is not merged: use limit()")
    if statement._group_by_clauses or statement._having_criteria or any(map(has_aggregate, statement._raw_columns)):
        return grouped(statement, key)
    return _rows(statement, key)


def _each(statement: Select[Any], key: Any) -> Plan:
    value = statement.subquery("shardkit_each")
    compiled = compile_for(with_shard(Select(next(iter(value.c)))), key, check_reads)
    return Plan(
        compiled=compiled, width=2, visible=(0,), names=("value",), types=types_of(compiled, [0]), shard_column=1, cache_key=key
    )


def _rows(statement: Select[Any], key: Any) -> Plan:
    """Plan of a statement whose rows are sent as they are, each with its shard and what it is sorted by."""
    inner, directions = _asked(statement)
    compiled = compile_for(inner, key)
    if getattr(compiled.compile_state, "multi_row_eager_loaders", False):
        raise refuse("joinedload() of a collection repeats rows: use selectinload()")
    columns = compiled._result_columns
    at = {column.keyname: place for place, column in enumerate(columns)}
    added = {SHARD, *(f"shardkit_k{n}" for n in range(len(directions)))}
    own = [place for place, column in enumerate(columns) if column.keyname not in added]
    if len(columns) != len(own) + len(added):
        raise refuse(f"the names {', '.join(sorted(added))} are taken: label its columns with others")
    entities = any(d["expr"] is d.get("entity") or isinstance(d["expr"], Bundle) for d in statement.column_descriptions)
    shard_column: int | None = at[SHARD]
    select = "*"
    if statement._distinct:
        for n, (expression, _, _) in enumerate(directions):
            if not _is_listed(expression, columns[at[f"shardkit_k{n}"]], [columns[place] for place in own], statement):
                raise refuse("with DISTINCT, what is in ORDER BY has to be selected too")
        if entities or any(getattr(o, "name", None) == "tenant_id" for place in own for o in columns[place].objects):
            select = "DISTINCT *"  # equal rows are of one tenant, and so of one shard
        else:
            select, shard_column = "DISTINCT " + ", ".join(f"c{n}" for n in range(at[SHARD])), None
    return Plan(
        compiled=compiled,
        width=len(columns),
        select=select,
        orders=tuple(order_key(at[f"shardkit_k{n}"], directed) for n, directed in enumerate(directions)),
        visible=tuple(own),
        names=tuple(columns[place].keyname for place in own),
        types=types_of(compiled, own),
        shard_column=shard_column,
        distinct=statement._distinct,
        entities=(lambda found: _asked(found)[0]) if entities else None,
        cache_key=key,
    )


def _asked(statement: Select[Any]) -> tuple[Select[Any], list[Direction]]:
    """What every shard is asked for the rows of *statement*, and how those are sorted."""
    inner = statement.order_by(None).limit(None).offset(None)
    inner._distinct = False
    directions = [direction(clause, statement) for clause in statement._order_by_clauses]
    keys = (expression.label(f"shardkit_k{n}") for n, (expression, _, _) in enumerate(directions))
    return with_shard(inner.add_columns(*keys)), directions


def _is_listed(expression: Any, column: Any, own: Sequence[Any], statement: Select[Any]) -> bool:
    if any(same(bare(raw), expression) for raw in statement._raw_columns):
        return True
    known = {o for other in own for o in other.objects if not isinstance(o, str)}
    return any(o in known for o in (expression, *column.objects) if not isinstance(o, str))
