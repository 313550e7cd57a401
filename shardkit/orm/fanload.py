"""From servers' answers to the program's rows: merged, limited, in Python types, and ORM objects bound to their shard."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, overload

from sqlalchemy.engine import Result, Row
from sqlalchemy.engine.result import IteratorResult, SimpleResultMetaData
from sqlalchemy.orm import loading
from sqlalchemy.orm.attributes import instance_state
from sqlalchemy.orm.context import QueryContext

from shardkit.core import merge
from shardkit.db.scatter import DIALECT
from shardkit.errors import FanOutError, FanOutRefusedError, ResultTooLargeError
from shardkit.orm.fanhaving import Values
from shardkit.orm.fanplan import Aggregate, Plan
from shardkit.orm.session import Guide, RoutedSession


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said about some of its shards: type oids of its columns, and rows."""

    shards: tuple[int, ...]
    oids: tuple[int, ...]
    rows: Sequence[merge.Row]
    code_points: bool


@dataclass(frozen=True, slots=True)
class FanOutResult(Sequence[Row[Any]]):
    """Rows of a fan-out, in order. ``shards[n]`` is the shard of row *n* (None where a row is made from several).

    ``failures`` has what shards said that did not answer; it is empty unless ``on_error="partial"`` was asked for.
    """

    rows: list[Row[Any]]
    shards: list[int | None]
    failures: Mapping[int, BaseException] = field(default_factory=dict)

    @property
    def partial(self) -> bool:
        """Whether this is only a part of the answer."""
        return bool(self.failures)

    def scalars(self) -> list[Any]:
        """The first column of each row: the objects, where one entity was selected."""
        return [row[0] for row in self.rows]

    def scalar(self) -> Any:
        """The first column of the first row; None if there is no row."""
        return self.rows[0][0] if self.rows else None

    def one(self) -> Row[Any]:
        """The only row; FanOutError if there are none or more."""
        if len(self.rows) != 1:
            raise FanOutError(f"one row was expected, and there are {len(self.rows)}")
        return self.rows[0]

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Row[Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row[Any]]: ...
    def __getitem__(self, index: int | slice) -> Row[Any] | list[Row[Any]]:
        return self.rows[index]


def merged(
    plan: Plan,
    statement: Any,
    params: Mapping[str, Any] | None,
    answers: Sequence[Answer],
    *,
    limit: int | None,
    offset: int,
    max_rows: int,
) -> tuple[tuple[int, ...], list[merge.Row]]:
    """Oids and rows of the whole: columns as servers send them, or a grouped statement's outputs."""
    oids = agreed(answers)
    if (plan.group_by or not plan.grouped) and any(len(answer.rows) > max_rows for answer in answers):
        raise too_large(max_rows)
    code_points = all(answer.code_points for answer in answers)
    if plan.grouped:
        values = plan.values_in(statement, params)
        oids, rows = _regrouped(plan, values, oids, answers, code_points=code_points, max_rows=max_rows)
        if plan.having is not None:
            widened = merge.as_compared(oids)
            rows = [row for row in rows if plan.having(widened(row), values)]
        if plan.orders:
            rows.sort(key=key_of(plan, oids, code_points=code_points))
        found: Iterable[merge.Row] = rows
    elif plan.orders:
        streams = merge.Merge(len(answers), key_of(plan, oids, code_points=code_points))
        for number, answer in enumerate(answers):
            streams.feed(number, answer.rows, more=False)
        found = streams.take()
    else:
        found = chain.from_iterable(answer.rows for answer in answers)
    if plan.distinct:
        shown = len(plan.visible) if plan.grouped else len(oids)
        alike = canonical(oids[:shown])
        found = merge.distinct(found, lambda row: alike(row[:shown]))
    kept = list(islice(found, offset, None if limit is None else offset + limit))
    if len(kept) > max_rows:
        raise too_large(max_rows)
    return oids, kept


def too_large(max_rows: int) -> ResultTooLargeError:
    """The error for more than *max_rows*."""
    return ResultTooLargeError(f"more than {max_rows} rows: nothing was kept. Use limit(), fan_out_stream(), or raise max_rows")


def agreed(answers: Sequence[Answer]) -> tuple[int, ...]:
    """The oids that all answers have. Raises FanOutError where shards differ in a column's type."""
    for answer in answers[1:]:
        if answer.oids != answers[0].oids:
            one, other = (", ".join(map(str, a.shards[:8])) for a in (answers[0], answer))
            raise FanOutError(
                f"shards differ in the types of this statement's columns (shards {one} and {other}, type oids "
                f"{answers[0].oids} and {answer.oids}): some are at another revision, migrate them first. Nothing was merged"
            )
    return answers[0].oids if answers else ()


def key_of(plan: Plan, oids: Sequence[int], *, code_points: bool) -> Callable[[merge.Row], Any]:
    """The sort key of the plan's ORDER BY."""
    convert = [
        merge.comparable(oids[order.column], code_points=code_points or order.code_points, what=f"number {n} in ORDER BY")
        for n, order in enumerate(plan.orders, 1)
    ]
    return merge.sort_key(plan.orders, convert)


def canonical(oids: Sequence[int]) -> Callable[[merge.Row], Any]:
    """What makes rows that PostgreSQL calls equal equal and hashable."""
    convert = [merge.comparable(oid, code_points=True, what="a column of DISTINCT or GROUP BY") for oid in oids]
    if not any(convert):
        return lambda row: row
    return lambda row: tuple(
        value if change is None or value is None else change(value) for change, value in zip(convert, row, strict=True)
    )


def _regrouped(
    plan: Plan, values: Values, oids: tuple[int, ...], answers: Sequence[Answer], *, code_points: bool, max_rows: int
) -> tuple[tuple[int, ...], list[merge.Row]]:
    keys = plan.keys
    lift: dict[int, Callable[[Any], Any]] = {}
    for place, name in enumerate(plan.partials, keys):
        if name in ("min", "max"):
            ordered = code_points or place - keys in plan.code_points
            merge.comparable(oids[place], code_points=ordered, what=f"the argument of {name}()")
        elif name == merge.DISTINCT:
            lift[place] = merge.distinct_values(oids[place])
        elif name == "sum" and oids[place] not in merge.FLOATS | merge.INTEGERS | {merge.NUMERIC}:
            raise FanOutRefusedError("sum() and avg() are merged of numbers only")
    found = (row for answer in answers for row in answer.rows)
    rows = merge.groups(found, keys, plan.partials, canonical(oids[:keys]), lift)
    if sum(len(row[place] or ()) for row in rows for place in lift) > max_rows:
        raise too_large(max_rows)
    if not plan.group_by and not rows:
        rows = [tuple(0 if name == "count" else None for name in plan.partials)]
    defaults = {o: None if o.default is None else values(o.default) for o in plan.outputs if isinstance(o, Aggregate)}

    def value(row: merge.Row, output: int | Aggregate) -> Any:
        if isinstance(output, int):
            return row[output]
        first, *others = (row[column] for column in output.columns)
        found = merge.average(first, others[0]) if output.name == "avg" else first
        if output.name == merge.DISTINCT:
            found = len(first or ())
        return defaults[output] if found is None else found

    def oid(output: int | Aggregate) -> int:
        if isinstance(output, int):
            return oids[output]
        own = oids[output.columns[0]] if output.name != merge.DISTINCT else merge.BIGINT
        return own if output.name != "avg" or own in merge.FLOATS else merge.NUMERIC

    return tuple(map(oid, plan.outputs)) if oids else (), [tuple(value(row, o) for o in plan.outputs) for row in rows]


def finished(
    plan: Plan, statement: Any, oids: Sequence[int], rows: Sequence[merge.Row], *, guide: Guide
) -> tuple[list[Row[Any]], list[int | None]]:
    """Rows as the program sees them, and the shard of each. May read more (selectinload), on the shards' own sessions."""
    shards = [None if plan.shard_column is None or plan.grouped else row[plan.shard_column] for row in rows]
    if plan.entities:
        return _objects(plan, statement, oids, rows, shards, guide), shards
    places = plan.visible
    convert = [
        kind._cached_result_processor(DIALECT, oids[place] if oids else None)
        for kind, place in zip(plan.types, places, strict=True)
    ]
    if any(convert):
        made: Iterator[Any] = (
            tuple(row[p] if c is None else c(row[p]) for p, c in zip(places, convert, strict=True)) for row in rows
        )
    else:
        made = (tuple(row[p] for p in places) for row in rows)
    return list(IteratorResult(SimpleResultMetaData(plan.names), made)), shards


class BoundSession(RoutedSession):
    """What objects of a fan-out are attached to: it reads their shard for lazy loads, and holds no connection in between.

    It writes nothing: ReadOnlyError. To change such an object, merge() it into ``kit.begin(tenant)``.
    """

    def __init__(self, guide: Guide, shard: int) -> None:
        super().__init__(guide=guide, shard=shard, read_only=True, autoflush=False, expire_on_commit=False)

    def _execute_internal(self, statement: Any, params: Any = None, **keywords: Any) -> Any:
        result = super()._execute_internal(statement, params, **keywords)
        if isinstance(result, Result):
            result = result.freeze()()
        self.commit()  # gives the connection back; nothing was written
        return result


class _Context:
    """What loading.instances asks of a cursor's context."""

    _is_server_side = False


class _Columns(SimpleResultMetaData):
    """Where columns are in a row; a loader may ask for one that was not selected, and loads it later."""

    def _index_for_key(self, key: Any, raiseerr: bool = True) -> Any:  # noqa: FBT001, FBT002  # SQLAlchemy's signature
        return super()._index_for_key(key, raiseerr) if raiseerr or key in self._keymap else None


class _Rows(IteratorResult[Any]):
    """Rows of one shard, in the place of a cursor's result."""

    def __init__(self, metadata: SimpleResultMetaData, rows: Iterator[Any]) -> None:
        super().__init__(metadata, rows)
        self.context = _Context()


def _objects(
    plan: Plan, statement: Any, oids: Sequence[int], rows: Sequence[merge.Row], shards: Sequence[Any], guide: Guide
) -> list[Row[Any]]:
    columns = plan.compiled._result_columns
    convert = [c.type._cached_result_processor(DIALECT, oid) for c, oid in zip(columns, oids, strict=True)]
    metadata = _Columns([c.keyname for c in columns], extra=[tuple(c.objects) for c in columns])
    names = [d["name"] for d in statement.column_descriptions]
    asked = plan.entities(statement) if plan.entities else statement
    by_shard: dict[int, list[int]] = {}
    for number, shard in enumerate(shards):
        by_shard.setdefault(shard, []).append(number)
    made: list[Any] = [None] * len(rows)
    for shard, numbers in by_shard.items():
        session = BoundSession(guide, shard)
        typed = [tuple(v if c is None else c(v) for v, c in zip(rows[n], convert, strict=True)) for n in numbers]
        context = QueryContext(
            plan.compiled.compile_state, asked, asked, {}, session, QueryContext.default_load_options
        )  # fmt: skip
        for number, row in zip(numbers, loading.instances(_Rows(metadata, iter(typed)), context), strict=True):  # type: ignore[arg-type]  # it asks no more of it
            made[number] = tuple(row)[: len(names)]
        for instance in session.identity_map.values():
            instance_state(instance).shardkit_session = session  # type: ignore[attr-defined]  # lives as long as they do
    return list(IteratorResult(SimpleResultMetaData(names), iter(made)))
