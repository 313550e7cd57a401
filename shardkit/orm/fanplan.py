"""A fan-out plan: what every shard is asked, and what has to be done with the answers.

The statement is compiled once, with marks where a shard's schema and number go. ORDER BY, LIMIT, DISTINCT and aggregates
are computed on the server over a UNION ALL of bare branches, one per shard; the plan says how the servers' answers merge.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Integer, literal_column
from sqlalchemy.exc import CompileError
from sqlalchemy.sql.elements import BindParameter
from sqlalchemy.sql.selectable import Select

from shardkit.core.merge import OrderKey
from shardkit.core.names import REFERENCE_SCHEMA
from shardkit.db.scatter import DIALECT, REFERENCE_MARK, SHARD_MARK
from shardkit.orm.fancheck import check, refuse
from shardkit.orm.fanhaving import Condition

SHARD: Final = "shardkit_shard"


@dataclass(frozen=True, slots=True)
class Aggregate:
    """One aggregate of a grouped statement: columns of its partial results, and what stands for NULL at the end."""

    name: str
    columns: tuple[int, ...]
    default: BindParameter[Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How one statement is fanned out. Columns are numbered as servers send them; ``orders`` of a grouped statement
    count its ``outputs`` instead, the visible ones first, then what is only sorted by.
    """

    compiled: Any
    width: int
    """Columns of a branch."""
    select: str = "*"
    group_by: str = ""
    orders: tuple[OrderKey, ...] = ()
    visible: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    types: tuple[Any, ...] = ()
    shard_column: int | None = None
    distinct: bool = False
    outputs: tuple[int | Aggregate, ...] = ()
    """Of a grouped statement: a group's key by its column, or an aggregate."""
    partials: tuple[str, ...] = ()
    """Of a grouped statement: the aggregates of the columns behind the keys."""
    code_points: frozenset[int] = frozenset()
    """Of a grouped statement: which of *partials* are of text that says itself that it is ordered by code points."""
    having: Condition | None = None
    """Of a grouped statement: which merged groups are kept, by their outputs."""
    entities: Callable[[Any], Any] | None = None
    """Where rows hold ORM objects: what shards are asked for a statement; its loader options have that one's values."""
    cache_key: Any = None

    @property
    def grouped(self) -> bool:
        """Whether servers send partial results of groups."""
        return bool(self.partials or self.group_by)

    @property
    def keys(self) -> int:
        """How many columns of a partial result say which group it is of."""
        return len(self.group_by.split(",")) if self.group_by else 0

    def around(self, limit: int | None, *, cap: int | None) -> tuple[str, str]:
        """What stands before and after the branches, so that no more rows come back than *limit* and *cap* (None: any)."""
        columns = ", ".join(f"c{n}" for n in range(self.width))
        order = "" if self.grouped else order_text(self.orders)
        bounds = [bound for bound in (cap, None if self.grouped else limit) if bound is not None]
        limited = f" LIMIT {min(bounds):d}" if bounds and (self.group_by or not self.grouped) else ""
        return f"SELECT {self.select} FROM ((", f")) AS u ({columns}){self.group_by}{order}{limited}"  # noqa: S608  # our own names

    def bind(self, statement: Any, params: Mapping[str, Any] | None) -> tuple[str, list[Any]]:
        """Text of a branch, with marks, and the values of its parameters."""
        compiled, key = self.compiled, key_of(statement) if self.cache_key is not None else None
        given = given_to(statement, params, key)
        values = compiled.construct_params(
            given or None, extracted_parameters=key.bindparams if key else None, escape_names=False
        )
        text, order, processors = compiled.string, compiled.positiontup, compiled._bind_processors
        if compiled.literal_execute_params or compiled.post_compile_params:
            expanded = compiled._process_parameters_for_postcompile(values)
            text, values, order = expanded.statement, expanded.parameters, expanded.positiontup
            processors = {**processors, **expanded.processors}
        text = text.replace(REFERENCE_MARK, REFERENCE_SCHEMA)
        return text, [processors[n](values[n]) if n in processors else values[n] for n in order or ()]

    def values_in(self, statement: Any, params: Mapping[str, Any] | None) -> Callable[[BindParameter[Any]], Any]:
        """What gives the value that a parameter of the plan has in *statement*, which has the same structure, and *params*."""
        news: dict[str, BindParameter[Any]] = {}
        key = key_of(statement) if self.cache_key is not None else None
        if key is not None:
            news = {old.key: new for old, new in zip(self.cache_key.bindparams, key.bindparams, strict=True)}
        given = given_to(statement, params, key)

        def value(bind: BindParameter[Any]) -> Any:
            if bind.key not in given and bind.required:
                raise refuse(f"parameter {bind.key!r} has no value")
            return given[bind.key] if bind.key in given else news.get(bind.key, bind).effective_value

        return value


def given_to(statement: Any, params: Mapping[str, Any] | None, key: Any = None) -> dict[str, Any]:
    """Values for named parameters of *statement*: those of ``statement.params()`` (*key* knows parts' too), and of the call."""
    return {**((statement._params if key is None else key.params) or {}), **(params or {})}


def with_shard(statement: Any) -> Any:
    """*statement* with one more column: the number of the shard."""
    return statement.add_columns(literal_column(SHARD_MARK, Integer).label(SHARD))


def compile_for(statement: Any, key: Any, check: Callable[[Any], None] = check) -> Any:
    """*statement* compiled for a branch, and checked."""
    try:
        compiled = statement._compiler(
            DIALECT, cache_key=key, column_keys=[], for_executemany=False, schema_translate_map={None: None}
        )
    except CompileError as exc:
        raise refuse(f"SQLAlchemy does not know how to write it ({exc})") from exc
    resolved = getattr(compiled.compile_state, "statement", statement)
    check(resolved if isinstance(resolved, Select) else statement)
    return compiled


def types_of(compiled: Any, places: Sequence[int]) -> tuple[Any, ...]:
    """Types of the columns at *places*."""
    return tuple(compiled._result_columns[place].type for place in places)


def order_text(orders: Sequence[OrderKey]) -> str:
    """The ORDER BY of the union."""
    if not orders:
        return ""
    return " ORDER BY " + ", ".join(
        f"c{o.column} {'DESC' if o.descending else 'ASC'} NULLS {'FIRST' if o.nulls_first else 'LAST'}" for o in orders
    )


def key_of(statement: Any) -> Any:
    """What statements of the same structure have in common; None if that cannot be told."""
    return statement._generate_cache_key()
