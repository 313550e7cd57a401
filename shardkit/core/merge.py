"""Merges what shards answer as PostgreSQL would have answered over all rows: sorted streams, distinct rows, aggregates.

Rows are tuples as the driver gives them. Whether a column can be compared here at all is decided by its type's oid.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from struct import pack, unpack
from types import MappingProxyType
from typing import Any, Final

from shardkit.errors import FanOutError, FanOutRefusedError

Row = tuple[Any, ...]

INTEGERS: Final = frozenset({20, 21, 23, 26})
REAL: Final = 700
FLOATS: Final = frozenset({REAL, 701})
BIGINT: Final = 20
NUMERIC: Final = 1700
TEXTS: Final = frozenset({19, 25, 1042, 1043})
PLAIN: Final = frozenset({16, 17, 1082, 1083, 1114, 2950}) | INTEGERS
"""bool, bytea, date, time, timestamp, uuid and integers: Python orders them as PostgreSQL does."""
INSTANT: Final = 1184
ARRAYS: Final = {
    1000: 16, 1001: 17, 1003: 19, 1005: 21, 1007: 23, 1009: 25, 1014: 1042, 1015: 1043, 1016: 20, 1021: 700, 1022: 701,
    1028: 26, 1115: 1114, 1182: 1082, 1183: 1083, 1185: 1184, 1231: 1700, 2951: 2950,
}  # fmt: skip
"""Types of elements by the type of their array."""
DISTINCT: Final = "distinct"
"""The partial result of ``count(DISTINCT x)``: the values."""
_EXACT: Final = Context(prec=150_000)  # more digits than a numeric can have: sums are exact, as they are there


@dataclass(frozen=True, slots=True)
class OrderKey:
    """One ORDER BY expression: the column of the row it is in, and its direction.

    *code_points*: it is sorted by code points, whatever its server sorts text by.
    """

    column: int
    descending: bool = False
    nulls_first: bool = False
    code_points: bool = False


def comparable(oid: int, *, code_points: bool, what: str) -> Callable[[Any], Any] | None:
    """What makes values of type *oid* sort and compare as in PostgreSQL; None if they do so as they are.

    *code_points* says that the servers order text by code points. Raises FanOutRefusedError where this cannot be done.
    """
    if oid in PLAIN or (oid in TEXTS and code_points):
        return None
    if oid in FLOATS or oid == NUMERIC:
        return _number
    if oid == INSTANT:
        return instant
    if oid in TEXTS:
        raise FanOutRefusedError(
            f'{what} is text, and these servers do not order text by code points: add .collate("C") to it, or cast it'
        )
    raise FanOutRefusedError(f"{what} has a type (oid {oid}) whose order only PostgreSQL knows: cast it to a plain type")


def _number(value: Any) -> Any:
    """NaN is equal to itself and greater than everything else."""
    return (1, 0) if value != value else (0, value)  # only NaN differs from itself


def instant(value: Any) -> Any:
    """What Python orders as PostgreSQL does. Of one zone it compares what clocks say, which are turned back once a year."""
    return value.replace(tzinfo=None) - value.utcoffset()


class _Descending:
    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __lt__(self, other: _Descending) -> bool:
        return bool(other.value < self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Descending) and bool(self.value == other.value)

    __hash__ = None  # type: ignore[assignment]  # an order has no use for it


def sort_key(orders: Sequence[OrderKey], convert: Sequence[Callable[[Any], Any] | None]) -> Callable[[Row], Any]:
    """The key by which rows sort as ORDER BY would; *convert* holds what ``comparable`` said for each of *orders*."""
    parts = tuple(zip(orders, convert, strict=True))

    def key(row: Row) -> Any:
        made: list[Any] = []
        for order, change in parts:
            value = row[order.column]
            if value is None:
                made.append((0,) if order.nulls_first else (2,))
                continue
            if change is not None:
                value = change(value)
            made.append((1, _Descending(value) if order.descending else value))
        return made

    return key


class Merge:
    """A k-way merge that waits for nobody: feed it what arrived, take what is certain, ask which streams are ``hungry``."""

    def __init__(self, streams: int, key: Callable[[Row], Any] | None) -> None:
        self._key = key
        self._waiting: list[deque[Row]] = [deque() for _ in range(streams)]
        self._heap: list[tuple[Any, int, Row]] = []
        self._lifted: set[int] = set()
        self._last: list[Any] = [None] * streams
        self._open = set(range(streams))
        self.hungry = set(range(streams))
        """Open streams of which nothing is buffered; nothing more can be taken before they are fed."""

    def feed(self, stream: int, rows: Iterable[Row], *, more: bool) -> None:
        """Add *rows* of a stream, in its order; *more* says whether it goes on."""
        self._waiting[stream].extend(rows)
        if not more:
            self._open.discard(stream)
        if stream not in self._lifted:
            self.hungry.discard(stream)
            self._lift(stream)

    def take(self) -> Iterator[Row]:
        """Rows in order, as far as they are certain. Raises FanOutError for a stream that was not sorted as expected."""
        while self._heap and not self.hungry:
            _, stream, row = heapq.heappop(self._heap)
            self._lifted.discard(stream)
            self._lift(stream)
            yield row

    def _lift(self, stream: int) -> None:
        """The next row of *stream* into the heap."""
        waiting = self._waiting[stream]
        if not waiting:
            if stream in self._open:
                self.hungry.add(stream)
            return
        row = waiting.popleft()
        key = self._key(row) if self._key else ()
        last, self._last[stream] = self._last[stream], key
        if last is not None and key < last:
            raise FanOutError(
                "a server sorted rows in another order than this program (a column with a collation of its own?): they were "
                'not merged. Add .collate("C") to the ORDER BY'
            )
        heapq.heappush(self._heap, (key, stream, row))
        self._lifted.add(stream)


def distinct(rows: Iterable[Row], canonical: Callable[[Row], Any]) -> Iterator[Row]:
    """The first of each set of equal rows; *canonical* makes what is equal in PostgreSQL equal and hashable here."""
    seen = set()
    for row in rows:
        mark = canonical(row)
        if mark not in seen:
            seen.add(mark)
            yield row


def _least(one: Any, other: Any) -> Any:
    return one if _ordered(one) <= _ordered(other) else other


def _greatest(one: Any, other: Any) -> Any:
    return one if _ordered(one) >= _ordered(other) else other


def _ordered(value: Any) -> Any:
    return instant(value) if getattr(value, "tzinfo", None) is not None else _number(value)


def _total(one: Any, other: Any) -> Any:
    return _EXACT.add(one, other) if isinstance(one, Decimal) else one + other


COMBINE: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "count": _total,
    "sum": _total,
    "min": _least,
    "max": _greatest,
    "bool_and": lambda one, other: one and other,
    "bool_or": lambda one, other: one or other,
    DISTINCT: lambda one, other: one | other,
}
"""How two partial results of an aggregate become one; NULLs are left out before."""


def combine(name: str, one: Any, other: Any) -> Any:
    """Two partial results of the aggregate *name* as one."""
    if one is None:
        return other
    return one if other is None else COMBINE[name](one, other)


def distinct_values(array: int) -> Callable[[Any], Any]:
    """What makes a set of an array of type *array*, in which values that PostgreSQL calls equal are one."""
    change = comparable(ARRAYS.get(array, array), code_points=True, what="the argument of count(DISTINCT ...)")

    def values(found: list[Any] | None) -> set[Any]:
        if any(isinstance(value, list) for value in found or ()):  # PostgreSQL has one type for arrays of all dimensions
            raise FanOutRefusedError("count(DISTINCT ...) of arrays is not merged: nothing was kept")
        return {change(value) if change else value for value in found or () if value is not None}

    return values


def groups(
    rows: Iterable[Row],
    keys: int,
    names: Sequence[str],
    canonical: Callable[[Row], Any],
    lift: Mapping[int, Callable[[Any], Any]] = MappingProxyType({}),
) -> list[Row]:
    """Partial groups merged: the first *keys* columns say which group, the others are partial results of *names*.

    *lift* makes mergeable values of what servers send in some columns.
    """
    found: dict[Any, list[Any]] = {}
    for row in rows:
        mark = canonical(row[:keys])
        if lift:
            row = tuple(lift[place](value) if place in lift else value for place, value in enumerate(row))
        known = found.get(mark)
        if known is None:
            found[mark] = list(row)
            continue
        for place, name in enumerate(names, keys):
            known[place] = combine(name, known[place], row[place])
    return [tuple(row) for row in found.values()]


def as_compared(oids: Sequence[int]) -> Callable[[Row], Row]:
    """What makes a row of types *oids* one that compares as in PostgreSQL: a real is shown with the few digits that tell it
    from other reals, and compared with all it has.
    """
    if REAL not in oids:
        return lambda row: row
    return lambda row: tuple(
        unpack("f", pack("f", value))[0] if oid == REAL and value is not None else value
        for oid, value in zip(oids, row, strict=True)
    )


def average(total: Any, count: int) -> Any:
    """``avg`` from its sum and count: a float for floats, else the numeric that PostgreSQL gives, digit for digit."""
    if total is None or not count:
        return None
    return total / count if isinstance(total, float) else numeric_quotient(Decimal(total), Decimal(count))


def numeric_quotient(dividend: Decimal, divisor: Decimal) -> Decimal:
    """``dividend / divisor`` with as many digits as PostgreSQL's numeric division keeps (select_div_scale in numeric.c)."""
    if not (dividend.is_finite() and divisor.is_finite()):
        return Decimal(dividend / divisor)
    scales = [max(0, -int(number.as_tuple().exponent)) for number in (dividend, divisor)]
    (weight1, first1), (weight2, first2) = _head(dividend), _head(divisor)
    quotient_weight = weight1 - weight2 - (first1 <= first2)
    scale = min(max(16 - 4 * quotient_weight, *scales, 0), 1000)
    (_, _, exponent1), (_, _, exponent2) = dividend.as_tuple(), divisor.as_tuple()
    above, below = _digits(dividend), _digits(divisor)
    shift = int(exponent1) - int(exponent2) + scale
    above, below = (above * 10**shift, below) if shift >= 0 else (above, below * 10**-shift)
    rounded = (2 * above + below) // (2 * below)  # half away from zero
    sign = int((dividend < 0) != (divisor < 0) and rounded != 0)
    return Decimal((sign, tuple(map(int, str(rounded))), -scale))


def _digits(number: Decimal) -> int:
    return int("".join(map(str, number.as_tuple().digits)))


def _head(number: Decimal) -> tuple[int, int]:
    """Weight and value of the first digit in base 10,000, as numeric stores it."""
    if number.is_zero():
        return 0, 0
    weight = number.adjusted() // 4
    return weight, int(_EXACT.scaleb(abs(number), -4 * weight))
