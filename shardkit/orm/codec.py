"""Rows as bytes and back: msgpack, decoded against the types of the mapper's columns. Nothing in a value is ever executed.

A stored row is a header of 22 bytes (``V``, format, the declaration's version, fingerprint of the columns, ``xmin`` of the
snapshot it was read in, seconds since 1970, milliseconds the load took) and a msgpack array. What does not decode, is
another program's or another schema's, is a miss.
"""

from __future__ import annotations

import struct
from collections import namedtuple
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from hashlib import blake2b
from typing import Any, Final, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
from sqlalchemy import Column, types
from sqlalchemy.dialects import postgresql

from shardkit.errors import CacheDeclarationError
from shardkit.orm.keys import ShardKey

_FORMAT: Final = 1
_PREFIX: Final = struct.Struct(">cBHL")
_HEADER: Final = struct.Struct(">8sQLH")
_DIALECT: Final = postgresql.dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy's
_UTC: Final = frozenset({"UTC", "Etc/UTC"})
_encode: Final = msgspec.msgpack.Encoder().encode

Converter = Callable[[Any], Any]
Row = tuple[Any, ...]


class Header(NamedTuple):
    """What a stored row says of itself."""

    prefix: bytes
    xmin: int
    filled_at: int
    load_ms: int

    @property
    def version(self) -> int:
        """The declaration's version it was written by."""
        return int.from_bytes(self.prefix[2:4], "big")


def read_header(raw: bytes) -> Header | None:
    """Header of a stored row, None where it cannot be one."""
    return Header(*_HEADER.unpack_from(raw)) if len(raw) >= _HEADER.size and raw[:2] == b"V\x01" else None


@dataclass(frozen=True, slots=True)
class Field:
    """How one column travels: ``read_as`` is the type it is selected as, where that is not the column's own."""

    annotation: Any
    to_wire: Converter | None = None
    from_wire: Converter | None = None
    zoned: bool = False
    read_as: Any = None


def field_of(column: Column[Any], *, owner: str) -> Field:
    """How *column* travels. CacheDeclarationError for a type that has no faithful way."""
    field = _field(column.type)
    if field is None:
        raise CacheDeclarationError(
            f"{owner}: column {column.name!r} of type {column.type!r} cannot be cached faithfully; map it with deferred=True, "
            "then it stays in PostgreSQL and is loaded when it is asked for"
        )
    return field


_PLAIN: Final[dict[type, Any]] = {
    types.Boolean: bool,
    types.Integer: int,
    types.Date: date,
    types.LargeBinary: bytes,
    types.String: str,
    types.JSON: Any,
}


def _field(kind: Any) -> Field | None:
    match kind:
        case types.PickleType():
            return None
        case types.Interval() | postgresql.INTERVAL():
            return Field(timedelta)
        case ShardKey():
            return Field(int)
        case types.TypeDecorator():
            return _decorated(kind)
        case types.Enum(enum_class=None):
            return Field(str)
        case types.Enum():
            members: Any = kind.enum_class
            return Field(str, to_wire=lambda member: member.name, from_wire=members.__getitem__)
        case types.Float(asdecimal=False):
            return Field(float)
        case types.Numeric():
            return Field(Decimal if kind.asdecimal else float)
        case types.DateTime(timezone=True):
            return Field(datetime, zoned=True)
        case types.DateTime():
            return Field(datetime)
        case types.Time(timezone=False):
            return Field(time)
        case types.Uuid():
            return Field(UUID if kind.as_uuid else str)
        case types.ARRAY():
            return _array(kind)
    found = next((python for base, python in _PLAIN.items() if isinstance(kind, base)), None)
    return Field(found) if found is not None else None


def _decorated(kind: types.TypeDecorator[Any]) -> Field | None:
    """The driver's value is stored, and the decorator makes of it what it makes of the driver's."""
    impl = kind.load_dialect_impl(_DIALECT)
    inner = _field(impl)
    own_way = type(kind).result_processor is not types.TypeDecorator.result_processor
    if inner is None or own_way or inner.to_wire or inner.zoned:
        return None
    return Field(inner.annotation, from_wire=_AfterLoad(kind), read_as=impl)


@dataclass(frozen=True, slots=True)
class _AfterLoad:
    kind: types.TypeDecorator[Any]

    def __call__(self, value: Any) -> Any:
        return self.kind.process_result_value(value, _DIALECT)


def _array(kind: types.ARRAY[Any]) -> Field | None:
    item = _field(kind.item_type)
    if item is None or item.to_wire or item.from_wire or item.zoned or kind.as_tuple:
        return None
    annotation: Any = item.annotation
    for _ in range(kind.dimensions or 1):
        annotation = list[annotation | None] if annotation is not Any else list[Any]
    return Field(annotation)


class Codec:
    """Of rows with these columns, in this order: named tuples, their fields called *names* (else as the columns are)."""

    def __init__(self, columns: Sequence[Column[Any]], *, owner: str, version: int, names: Sequence[str] | None = None) -> None:
        fields = [field_of(column, owner=owner) for column in columns]
        self.read_as = [field.read_as for field in fields]
        self._out = [(n, f.to_wire) for n, f in enumerate(fields) if f.to_wire]
        self._in = [(n, f.from_wire, f.read_as is not None) for n, f in enumerate(fields) if f.from_wire]
        self._zoned = [n for n, f in enumerate(fields) if f.zoned]
        wanted = [f.annotation if f.annotation is Any else f.annotation | None for f in fields]
        make: Any = namedtuple  # noqa: PYI024  # its fields are data
        row = make(owner, names or [column.key for column in columns], rename=True)
        row.__annotations__ = dict(zip(row._fields, wanted, strict=True))
        self.row: Callable[[Sequence[Any]], Row] = row._make
        self._decode = msgspec.msgpack.Decoder(row).decode
        self._decode_zoned = msgspec.msgpack.Decoder(tuple[*wanted, str]).decode  # type: ignore[valid-type]  # made from the mapper
        text = repr([(c.name, repr(c.type), str(f.annotation)) for c, f in zip(columns, fields, strict=True)])
        self.version = version
        self.prefix, self.zoned_prefix = _prefix(text, version), _prefix(f"{text} in a zone", version)
        """What values begin with; the other one those whose last part is the zone in which PostgreSQL gave the times."""

    def encode(self, row: Sequence[Any], *, xmin: int, now_s: int, load_ms: int) -> bytes | None:
        """*row*, of values as they were selected. None if it would not come back the same (JSON beyond 64 bits, NaN)."""
        wire = list(row)
        for n, convert in self._out:
            if wire[n] is not None:
                wire[n] = convert(wire[n])
        prefix, decode = self.prefix, self._decode
        try:
            zone = _zone(wire[n] for n in self._zoned)
            if zone is not None:
                prefix, decode = self.zoned_prefix, self._decode_zoned
                wire.append(zone)
            payload = _encode(wire)
            if list(decode(payload)) != wire:
                return None
        except (msgspec.MsgspecError, ValueError, TypeError, OverflowError):
            return None
        return _HEADER.pack(prefix, xmin, now_s, min(load_ms, 65_535)) + payload

    def decode(self, raw: bytes) -> Row | None:
        """The row in *raw* as the ORM would have loaded it, or None where *raw* is not a row of ours."""
        try:
            if raw[:8] == self.prefix:
                row: Row = self._decode(raw[22:])
                return self._finish(list(row)) if self._in else row
            if raw[:8] == self.zoned_prefix:
                *values, zone = self._decode_zoned(raw[22:])
                for n in self._zoned:
                    if values[n] is not None:
                        values[n] = values[n].astimezone(ZoneInfo(zone))
                return self._finish(values)
        except Exception:  # noqa: BLE001  # a decorator or a zone may say no in any way; foreign bytes are a miss
            return None
        return None

    def decode_many(self, values: Sequence[bytes | None]) -> list[Row | None]:
        """``decode`` of each; None for None."""
        prefix, read = self.prefix, self._decode
        if not self._in:
            with suppress(Exception):  # then one by one, to find out which
                return [None if raw is None else read(raw[22:]) if raw[:8] == prefix else self.decode(raw) for raw in values]
        return [None if raw is None else self.decode(raw) for raw in values]

    def loaded(self, row: Sequence[Any]) -> Row:
        """A selected *row* as the ORM would have loaded it."""
        values = list(row)
        for n, convert, decorated in self._in:
            if decorated:
                values[n] = convert(values[n])
        return self.row(values)

    def _finish(self, values: list[Any]) -> Row:
        for n, convert, decorated in self._in:
            if decorated or values[n] is not None:
                values[n] = convert(values[n])
        return self.row(values)


def _prefix(text: str, version: int) -> bytes:
    return _PREFIX.pack(b"V", _FORMAT, version, int.from_bytes(blake2b(text.encode(), digest_size=4).digest(), "big"))


def _zone(values: Any) -> str | None:
    """The one zone of the times in *values*. ValueError where it has no name."""
    for value in values:
        if value is not None:
            key = getattr(value.tzinfo, "key", None)
            if key is None and value.utcoffset():
                raise ValueError("a time in a zone without a name")
            return None if key in _UTC else key
    return None


class KeyListCodec:
    """Of lists of primary keys."""

    def __init__(self, columns: Sequence[Column[Any]], *, owner: str, version: int) -> None:
        fields = [field_of(column, owner=owner) for column in columns]
        annotations = [field.annotation for field in fields]
        self._out, self._in = [f.to_wire for f in fields], [f.from_wire if f.to_wire else None for f in fields]
        self._converts = any(self._out)
        self._decode = msgspec.msgpack.Decoder(list[tuple[*annotations]]).decode  # type: ignore[valid-type]  # made from the mapper
        text = repr([(c.name, repr(c.type)) for c in columns])
        self.prefix = _prefix(text, version)
        self.version = version

    def encode(self, keys: Sequence[tuple[Any, ...]], *, xmin: int, now_s: int, load_ms: int) -> bytes:
        """*keys* in their order."""
        if self._converts:
            keys = [_converted(key, self._out) for key in keys]
        return _HEADER.pack(self.prefix, xmin, now_s, min(load_ms, 65_535)) + _encode(keys)

    def decode(self, raw: bytes) -> list[tuple[Any, ...]] | None:
        """The keys in *raw*, or None where it is not such a list."""
        if raw[:8] != self.prefix:
            return None
        try:
            keys = self._decode(raw[22:])
            return [_converted(key, self._in) for key in keys] if self._converts else keys
        except (msgspec.MsgspecError, KeyError):  # a member that is not there any more
            return None


def _converted(key: Row, ways: Sequence[Converter | None]) -> Row:
    return tuple(value if way is None else way(value) for value, way in zip(key, ways, strict=True))
