"""Plans of UNION and UNION ALL: every shard unites its own parts, UNION removes what is equal in several shards as well."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import select
from sqlalchemy.sql.elements import _label_reference, _textual_label_reference
from sqlalchemy.sql.selectable import CompoundSelect, Select, SelectStatementGrouping, _CompoundSelectKeyword

from shardkit.orm.fancheck import check_reads, has_aggregate, refuse
from shardkit.orm.fanexpr import bare, direction, order_key
from shardkit.orm.fanplan import Plan, compile_for, types_of, with_shard


def united(statement: CompoundSelect[Any], key: Any) -> Plan:
    """The plan of a union of plain selects, each of which could be fanned out by itself."""
    if statement.keyword not in (_CompoundSelectKeyword.UNION, _CompoundSelectKeyword.UNION_ALL):
        raise refuse("INTERSECT and EXCEPT compare rows of different shards: fan out each part")
    if statement._fetch_clause is not None:
        raise refuse("FETCH FIRST is not merged: use limit()")
    if statement._with_options or any(part._with_options for part in _parts(statement)):
        raise refuse("options of a union would be left out: it gives columns, not objects")
    for part in _parts(statement):
        if part._distinct or part._group_by_clauses or part._having_criteria or any(map(has_aggregate, part._raw_columns)):
            raise refuse("a part of a union that groups or removes duplicates would do so for each shard alone")
        if part._limit_clause is not None or part._offset_clause is not None or part._fetch_clause is not None:
            raise refuse("a part of a union with a limit of its own would have one for each shard")
        compile_for(part, None)  # refuses what it could not be asked by itself
    rows = statement.order_by(None).limit(None).offset(None).subquery("shardkit_union")
    directions = [direction(_column(clause, statement, rows), statement) for clause in statement._order_by_clauses]
    shown = list(rows.c)
    keys = [expression.label(f"shardkit_k{n}") for n, (expression, _, _) in enumerate(directions)]
    compiled = compile_for(with_shard(select(*shown, *keys)), key, check_reads)
    everything = statement.keyword is _CompoundSelectKeyword.UNION_ALL
    wide = len(shown) + len(keys)
    return Plan(
        compiled=compiled,
        width=wide + 1,
        select="*" if everything else "DISTINCT " + ", ".join(f"c{n}" for n in range(wide)),
        orders=tuple(order_key(len(shown) + n, directed) for n, directed in enumerate(directions)),
        visible=tuple(range(len(shown))),
        names=tuple(column.key for column in shown),
        types=types_of(compiled, range(len(shown))),
        shard_column=wide if everything else None,
        distinct=not everything,
        cache_key=key,
    )


def _parts(statement: Any) -> Iterator[Select[Any]]:
    """The selects that *statement* unites; unions of the same kind in it are taken apart."""
    for part in statement.selects:
        inner = part.element if isinstance(part, SelectStatementGrouping) else part
        match inner:
            case Select():
                yield inner
            case CompoundSelect() if inner.keyword is statement.keyword and inner._limit_clause is inner._offset_clause is None:
                yield from _parts(inner)
            case _:
                raise refuse("a union unites plain selects, or unions of the same kind")


def _column(clause: Any, statement: CompoundSelect[Any], rows: Any) -> Any:
    """One ORDER BY clause with the union's columns in the place of those of its first part."""
    names = {id(bare(raw)): name for raw, name in zip(statement.selected_columns, rows.c.keys(), strict=True)}

    def change(element: Any, **_: Any) -> Any:
        if isinstance(element, _textual_label_reference):
            if element.element not in rows.c:
                raise refuse("GROUP BY and ORDER BY take expressions, or names of selected columns; SQL text")
            return rows.c[element.element]
        if isinstance(element, _label_reference):
            return None
        if id(bare(element)) in names:
            return rows.c[names[id(bare(element))]]
        return rows.corresponding_column(element) if hasattr(element, "table") else None

    from sqlalchemy.sql.visitors import replacement_traverse

    return replacement_traverse(clause, {}, change)
