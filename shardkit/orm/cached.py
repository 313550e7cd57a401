"""Which entities are cached, and by which keys.

``__cached__ = Cached(unique=["email"], lists=[ListKey("user_id", limit=100)])`` in a model says so.
An entity is cached by its primary key, by declared unique keys (each holds the whole row) and by list keys (each holds the
primary keys of the newest rows with that value). The key of a tenant's row carries the tenant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cached_property
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Column, Table, event, types
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import ColumnProperty, Mapper

from shardkit.core.cacheproto import name_part
from shardkit.db import classify
from shardkit.errors import CacheDeclarationError, CacheKeyError
from shardkit.orm.codec import Codec, KeyListCodec
from shardkit.orm.keys import ShardKey
from shardkit.orm.rebuild import Build, builder
from shardkit.orm.tenancy import TENANT_COLUMN, TenantScoped

INFO: Final = "shardkit_cached"
_REMEMBERED: Final = 4096
Names = tuple[str, ...]


def _names(given: str | Iterable[str]) -> Names:
    return (given,) if isinstance(given, str) else tuple(given)


class ListKey:
    """The newest rows with one value of *columns*: at most *limit*, by *newest* (an attribute, else the primary key)."""

    def __init__(self, columns: str | Iterable[str], *, limit: int, newest: str | None = None) -> None:
        self.columns, self.limit, self.newest = _names(columns), limit, newest
        if type(limit) is not int or not 1 <= limit <= 10_000:
            raise CacheDeclarationError(f"the list key {self.columns} needs a limit of 1 to 10,000 rows, not {limit!r}")


class Cached:
    """Declares an entity as cached, as its ``__cached__``.

    *unique*: attributes, or tuples of them, that name one row. *lists*: ListKey. *ttl_s* and *negative_ttl_s*: the last line,
    after which a row (or its absence) is read again in any case. *version*: raise it when the meaning of a column changed;
    the columns themselves are known by a fingerprint. *max_bytes*: larger rows are not cached.
    """

    def __init__(
        self,
        *,
        unique: Iterable[str | Iterable[str]] = (),
        lists: Iterable[ListKey] = (),
        ttl_s: float = 3600.0,
        negative_ttl_s: float = 60.0,
        version: int = 1,
        max_bytes: int = 65_536,
    ) -> None:
        self.unique, self.lists = tuple(map(_names, unique)), tuple(lists)
        self.ttl_s, self.negative_ttl_s, self.version, self.max_bytes = ttl_s, negative_ttl_s, version, max_bytes
        if type(version) is not int or not 1 <= version <= 65_535:
            raise CacheDeclarationError(f"a version is a whole number of 1 to 65,535, not {version!r}")
        if not all(0 < t <= 30 * 86_400 for t in (ttl_s, negative_ttl_s)):
            raise CacheDeclarationError("ttl_s and negative_ttl_s are seconds, above 0 and up to 30 days")


@dataclass(frozen=True, slots=True)
class Key:
    """One way to ask for an entity; ``columns`` without the tenant, ``mark`` tells its names from other keys'."""

    columns: tuple[Column[Any], ...]
    attributes: Names
    mark: str
    listing: ListKey | None = None
    order: tuple[Column[Any], ...] = ()


class Entity:
    """What is known of one cached entity: made once, when its mapper is; the parts that need a configured mapper later."""

    def __init__(self, mapper: Mapper[Any], declared: Cached) -> None:
        self.mapper, self.declared = mapper, declared
        self.cls: type[Any] = mapper.class_
        self.name = self.cls.__name__
        self.table: Table = mapper.local_table  # type: ignore[assignment]  # checked next
        self._check_shape()
        self.attributes: Names = ()
        self.columns: tuple[Column[Any], ...] = ()
        self._choose_columns()
        self.tenant = self.table.c[TENANT_COLUMN] if issubclass(self.cls, TenantScoped) else None
        self.primary = Key(tuple(mapper.primary_key), self._attributes_of(mapper.primary_key), "")  # type: ignore[arg-type]  # of this table
        self.keys: dict[Names, Key] = {self.primary.attributes: self.primary}
        self.lists: dict[Names, Key] = {}
        for names in declared.unique:
            self.keys[names] = Key(self._columns_of(names), names, ",".join(names))
        for listing in declared.lists:
            newest = self._columns_of((listing.newest,)) if listing.newest else ()
            order = tuple(dict.fromkeys((*newest, *self.primary.columns)))
            self.lists[listing.columns] = Key(
                self._columns_of(listing.columns), listing.columns, ",".join(listing.columns) + "*", listing, order
            )
        self.all_keys = (*self.keys.values(), *self.lists.values())
        key_columns = {c: None for key in self.all_keys for c in (*key.columns, *key.order)}
        if self.tenant is not None:
            key_columns[self.tenant] = None
        self.key_columns: tuple[Column[Any], ...] = tuple(key_columns)
        by_itself = {c for c in key_columns if c.onupdate is not None or c.server_onupdate is not None}
        self.named = frozenset(c for key in self.all_keys for c in (*key.columns, self.tenant) if c is not None)
        """Columns of which names are made; the others of ``key_columns`` only order lists."""
        self.renaming, self.reordering = by_itself & self.named, by_itself - self.named
        """Of both, those that an UPDATE sets without being told to (``onupdate``, ``Computed``)."""
        self._texts = {column: key_text(column, owner=self.name) for column in key_columns}
        self._prefixes: dict[Any, str] = {}
        self.codec = Codec(self.columns, owner=self.name, version=declared.version, names=self.attributes)
        self.list_codec = KeyListCodec(self.primary.columns, owner=self.name, version=declared.version) if self.lists else None

    @cached_property
    def build(self) -> Build:
        """Makes an instance of a row."""
        return builder(self.mapper, self.attributes)

    @cached_property
    def key_attributes(self) -> dict[Column[Any], str]:
        """Attribute of each column of any key."""
        return {column: self.mapper.get_property_by_column(column).key for column in self.key_columns}

    @cached_property
    def key_places(self) -> tuple[int, ...]:
        """Where the primary key is in a row."""
        return tuple(self.attributes.index(name) for name in self.primary.attributes)

    def prefix(self, key: Key, tenant: Any) -> str:
        """What the names of all of *tenant*'s values of *key* begin with."""
        usual = type(tenant) is str or type(tenant) is int  # True equals 1, and is no key
        known = self._prefixes.get((key.mark, tenant)) if usual else None
        if known is None:
            owner = "" if self.tenant is None else self._texts[self.tenant](tenant)
            known = f"{self.table.name}:{key.mark}:{owner}"
            if usual:
                if len(self._prefixes) >= _REMEMBERED:
                    self._prefixes.clear()
                self._prefixes[key.mark, tenant] = known
        return known

    def name_of(self, key: Key, values: Sequence[Any], tenant: Any) -> str:
        """The name under which *values* of *key* are stored, below the shard's tag. CacheKeyError for what cannot be one."""
        if len(values) != len(key.columns):
            raise CacheKeyError(
                f"{self.name} by {', '.join(key.attributes)} takes {len(key.columns)} values, not {len(values)}"
            )
        texts = self._texts
        if len(values) == 1:
            return f"{self.prefix(key, tenant)}:{texts[key.columns[0]](values[0])}"
        return ":".join((self.prefix(key, tenant), *(texts[c](v) for c, v in zip(key.columns, values, strict=True))))

    def primary_names(self, keys: Sequence[Any], tenant: Any) -> list[str]:
        """``name_of`` for many primary keys."""
        if len(self.primary.columns) > 1:
            return [self.name_of(self.primary, key, tenant) for key in keys]
        before, text = self.prefix(self.primary, tenant) + ":", self._texts[self.primary.columns[0]]
        if text is _whole_number and set(map(type, keys)) == {int}:
            return [before + key for key in map(str, keys)]
        return [before + text(key) for key in keys]

    def names_of(self, row: Mapping[Column[Any], Any], keys: Iterable[Key] | None = None) -> Iterator[str]:
        """The names of *keys* (all, if not given) for a row; a key with a NULL in it names nothing."""
        tenant = None if self.tenant is None else row[self.tenant]
        for key in self.all_keys if keys is None else keys:
            values = [row[column] for column in key.columns]
            if not any(value is None for value in values):
                yield self.name_of(key, values, tenant)

    def _check_shape(self) -> None:
        mapper = self.mapper
        if mapper.inherits or mapper.polymorphic_on is not None:
            raise CacheDeclarationError(
                f"{self.name} is part of an inheritance and cannot be cached: a row could be of another class"
            )
        if not isinstance(self.table, Table) or not mapper.primary_key:
            raise CacheDeclarationError(f"{self.name} has no table with a primary key, so no row of it can be named")
        if self.table.schema is not None:
            raise CacheDeclarationError(f"{self.name} is in schema {self.table.schema!r}: only sharded tables are cached")

    def _choose_columns(self) -> None:
        chosen = {}
        for prop in self.mapper._props.values():  # column_attrs would configure mappers, too early for their relationships
            if not isinstance(prop, ColumnProperty) or prop.deferred:
                continue
            (column, *others) = prop.columns
            if others or not isinstance(column, Column) or column.table is not self.table:
                raise CacheDeclarationError(f"{self.name}.{prop.key} is not one plain column: map it with deferred=True")
            chosen[prop.key] = column
        self.attributes, self.columns = tuple(chosen), tuple(chosen.values())

    def _attributes_of(self, columns: Iterable[Any]) -> Names:
        return tuple(self.mapper.get_property_by_column(column).key for column in columns)

    def _columns_of(self, attributes: Names) -> tuple[Column[Any], ...]:
        found = dict(zip(self.attributes, self.columns, strict=True))
        unknown = [name for name in attributes if name not in found]
        if unknown or not attributes:
            raise CacheDeclarationError(
                f"{self.name} has no plain attribute {', '.join(unknown) or '(none named)'} to be a cache key"
            )
        return tuple(found[name] for name in attributes)


def key_text(column: Column[Any], *, owner: str) -> Callable[[Any], str]:
    """How values of *column* are written in names: one way for each value, whoever writes it."""
    kind = column.type
    found: Callable[[Any], str] | None
    match kind:
        case _ if getattr(kind, "collation", None) or getattr(kind, "precision", None) is not None:
            found = None  # PostgreSQL may take different texts for equal, or round
        case ShardKey() | types.Integer():
            found = _whole_number
        case types.Enum():
            found = _exactly(kind.enum_class or str, lambda v: name_part(getattr(v, "name", v)))
        case types.CHAR() | types.NCHAR() | postgresql.CITEXT():
            found = None  # padded with blanks; without regard to case
        case types.String():
            found = _exactly(str, name_part)
        case types.Uuid(as_uuid=True):
            found = _exactly(UUID, lambda v: v.hex)
        case types.DateTime(timezone=True):
            found = _exactly(datetime, lambda v: name_part(v.astimezone(UTC).isoformat()), zoned=True)
        case types.DateTime():
            found = _exactly(datetime, lambda v: name_part(v.isoformat()), zoned=False)
        case types.Date():
            found = _exactly(date, date.isoformat)
        case types.LargeBinary():
            found = _exactly(bytes, bytes.hex)
        case types.Boolean():
            found = _exactly(bool, str)
        case _:
            found = None
    if found is None:
        raise CacheDeclarationError(
            f"{owner}.{column.name} of type {kind!r} cannot be part of a cache key: two texts of one value would be two keys"
        )
    return found


def _whole_number(value: Any) -> str:
    return str(value) if type(value) is int else _other_int(value)


def _exactly(kind: type, text: Callable[[Any], str], *, zoned: bool | None = None) -> Callable[[Any], str]:
    """*text* for instances of *kind*; a bool is no int here, a datetime no date, and a time has a zone or has none."""
    never = {int: bool, date: datetime}.get(kind, ())

    def convert(value: Any) -> str:
        if not isinstance(value, kind) or isinstance(value, never):
            raise CacheKeyError(f"this key takes {kind.__name__}, not {type(value).__name__}")
        if zoned is not None and zoned is (getattr(value, "tzinfo", None) is None):
            raise CacheKeyError(f"this key takes a time {'with' if zoned else 'without'} a zone")
        return text(value)

    return convert


_other_int: Final = _exactly(int, lambda v: str(int(v)))


def entity_of(cls: type[Any]) -> Entity:
    """What is declared for *cls*. CacheDeclarationError where nothing is."""
    table: Any = getattr(cls, "__table__", None)
    found: Entity | None = table.info.get(INFO) if table is not None else None
    if found is None or found.cls is not cls:
        raise CacheDeclarationError(f"{getattr(cls, '__name__', cls)!s} is not cached: declare __cached__ = Cached(...) in it")
    return found


@event.listens_for(Mapper, "after_mapper_constructed")
def _declare(mapper: Mapper[Any], cls: type[Any]) -> None:
    declared = cls.__dict__.get("__cached__")
    if declared is not None:
        entity = Entity(mapper, declared)
        entity.table.info[INFO] = entity
        classify.CACHED_TABLES.add(entity.table.name)
    elif mapper.inherits and any("__cached__" in base.__dict__ for base in cls.__mro__):
        raise CacheDeclarationError(f"{cls.__name__} inherits from a cached entity, whose rows could then be of another class")
