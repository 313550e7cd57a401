"""Rows come back as they were or not at all, and instances made of them are those that a load would have made."""

from __future__ import annotations

import enum
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import (
    CHAR,
    JSON,
    BigInteger,
    Boolean,
    Column,
    Date,
    DateTime,
    Enum,
    Float,
    Integer,
    Interval,
    LargeBinary,
    Numeric,
    PickleType,
    String,
    Text,
    Time,
    Uuid,
    create_engine,
    inspect,
)
from sqlalchemy.dialects.postgresql import ARRAY, CITEXT, INET, JSONB
from sqlalchemy.exc import ArgumentError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, composite, mapped_column, reconstructor
from sqlalchemy.types import TypeDecorator

from shardkit import ShardKey, TenantScoped
from shardkit.errors import CacheDeclarationError, CacheKeyError
from shardkit.orm import rebuild
from shardkit.orm.cached import Cached, ListKey, entity_of, key_text
from shardkit.orm.codec import Codec, read_header


class Mood(enum.Enum):
    GLAD = "g"
    SAD = "s"


class Shouted(TypeDecorator[str]):
    impl = String
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return value

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return None if value is None else value.upper()


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
ints = st.integers(-(2**63), 2**63 - 1)
jsons = st.recursive(
    st.none() | st.booleans() | ints | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
zones = st.sampled_from([ZoneInfo("UTC"), ZoneInfo("Europe/Berlin"), ZoneInfo("Asia/Kathmandu"), UTC])
naive = st.datetimes(datetime(1800, 1, 2), datetime(2200, 1, 1)).map(lambda t: t.replace(fold=0))  # noqa: DTZ001  naive, as PostgreSQL's timestamp is
TYPES = [
    (BigInteger(), ints),
    (Integer(), ints),
    (ShardKey(), ints),
    (Text(), texts),
    (String(40), texts),
    (Boolean(), st.booleans()),
    (Float(), st.floats(allow_nan=False)),
    (Numeric(30, 10), st.decimals(allow_nan=False, allow_infinity=False)),
    (Numeric(asdecimal=False), st.floats(allow_nan=False)),
    (DateTime(), naive),
    (Date(), st.dates()),
    (Time(), st.times().map(lambda t: t.replace(fold=0))),
    (Interval(), st.timedeltas(timedelta(days=-10_000), timedelta(days=10_000))),
    (Uuid(), st.uuids()),
    (LargeBinary(), st.binary()),
    (Enum(Mood), st.sampled_from(Mood)),
    (Enum("a", "b", name="ab"), st.sampled_from(["a", "b"])),
    (JSON(), jsons),
    (JSONB(), jsons),
    (ARRAY(Integer), st.lists(ints | st.none())),
    (ARRAY(Text, dimensions=2), st.lists(st.lists(texts))),
]
COLUMNS = [Column(f"c{n}", kind) for n, (kind, _) in enumerate(TYPES)]
ROW = (1, 2, 3, "t", "s", True, 0.5, Decimal("1.50"), 2.5, datetime(2026, 1, 1), date(2026, 1, 1), time(1), timedelta(1),  # noqa: DTZ001  naive, as PostgreSQL's timestamp is
       UUID(int=5), b"b", Mood.GLAD, "a", {"k": [1]}, None, [1, None], [["x"]])  # fmt: skip
CODEC = Codec(COLUMNS, owner="Everything", version=1)


def same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and one == other and repr(one) == repr(other)


@given(st.tuples(*(values | st.none() for _, values in TYPES)))
def test_every_type_comes_back_as_it_was(row):
    raw = CODEC.encode(row, xmin=7, now_s=8, load_ms=9)
    assert raw is not None
    assert all(map(same, CODEC.decode(raw), row))
    header = read_header(raw)
    assert (header.xmin, header.filled_at, header.load_ms, header.version) == (7, 8, 9, 1)


@given(st.data())
def test_many_are_decoded_as_one_by_one(data):
    zoned = Codec([Column("a", DateTime(timezone=True)), Column("b", Integer())], owner="X", version=1)
    plain = Codec([Column("a", Text()), Column("b", Integer())], owner="X", version=1)
    for codec, first in ((zoned, st.builds(datetime.astimezone, naive, zones)), (plain, st.text(max_size=3)), (CODEC, None)):
        rows = st.just(ROW) if first is None else st.tuples(first, st.integers(0, 9))
        raws = rows.map(lambda row, codec=codec: codec.encode(row, xmin=1, now_s=1, load_ms=1))
        wrong = st.binary(max_size=9).map(lambda tail, codec=codec: codec.prefix + b"\0" * 14 + tail)
        values = data.draw(st.lists(st.none() | raws | wrong | st.binary(max_size=9), max_size=5))
        assert codec.decode_many(values) == [None if raw is None else codec.decode(raw) for raw in values]


@given(naive, naive | st.none(), zones)
def test_times_come_back_in_the_zone_they_had(first, second, zone):
    codec = Codec([Column("a", DateTime(timezone=True)), Column("b", DateTime(timezone=True))], owner="X", version=1)
    row = tuple(t and t.replace(tzinfo=zone).astimezone(zone) for t in (first, second))
    raw = codec.encode(row, xmin=1, now_s=1, load_ms=1)
    back = codec.decode(raw)
    assert back == row
    assert [t and (t.hour, t.utcoffset()) for t in back] == [t and (t.hour, t.utcoffset()) for t in row]


@given(st.binary(max_size=200))
def test_foreign_bytes_are_a_miss(raw):
    assert CODEC.decode(raw) is None
    assert CODEC.decode(CODEC.prefix + b"\0" * 14 + raw) is None
    assert CODEC.decode(CODEC.zoned_prefix + b"\0" * 14 + raw) is None


@given(st.data())
def test_damaged_values_are_a_miss_or_a_row_of_the_right_types(data):
    raw = bytearray(CODEC.encode(ROW, xmin=1, now_s=1, load_ms=1))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    found = CODEC.decode(bytes(raw[: data.draw(st.integers(0, len(raw)))]))
    if found is not None:
        assert all(v is None or type(v) is type(w) or w is None for v, w in zip(found, ROW, strict=True))


def test_what_would_not_come_back_the_same_is_not_stored():
    for value in (float("nan"), 2**70, ("tuple",), {"deep": {3, 4}}):
        codec = Codec([Column("a", JSON())], owner="X", version=1)
        assert codec.encode((value,), xmin=1, now_s=1, load_ms=1) is None


def test_another_schema_is_a_miss():
    one = Codec([Column("a", Integer()), Column("b", Text())], owner="X", version=1)
    raw = one.encode((1, "x"), xmin=1, now_s=1, load_ms=1)
    for columns, version in (
        ([Column("a", Integer()), Column("c", Text())], 1),
        ([Column("a", Integer()), Column("b", Text()), Column("c", Text())], 1),
        ([Column("a", Integer()), Column("b", Text())], 2),
    ):
        assert Codec(columns, owner="X", version=version).decode(raw) is None


@pytest.mark.parametrize("kind", [PickleType(), INET(), ARRAY(Enum(Mood))], ids=repr)
def test_types_without_a_faithful_way_are_refused(kind):
    with pytest.raises(CacheDeclarationError, match="deferred"):
        Codec([Column("a", kind)], owner="X", version=1)


def test_decorated_values_are_what_the_decorator_makes_of_the_drivers():
    codec = Codec([Column("a", Shouted())], owner="X", version=1)
    raw = codec.encode(("quiet",), xmin=1, now_s=1, load_ms=1)
    assert codec.decode(raw) == codec.loaded(("quiet",)) == ("QUIET",)


class Base(DeclarativeBase):
    pass


class Point:
    def __init__(self, x: int, y: int) -> None:
        self.x, self.y = x, y

    def __composite_values__(self) -> tuple[int, int]:
        return self.x, self.y

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Point) and (other.x, other.y) == (self.x, self.y)

    def __hash__(self) -> int:
        return hash((self.x, self.y))


class Thing(Base):
    __tablename__ = "things"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    other: Mapped[str | None]
    x: Mapped[int]
    y: Mapped[int]
    at: Mapped[Point] = composite(Point, "x", "y")
    large: Mapped[str | None] = mapped_column(deferred=True)
    __cached__ = Cached()
    woken = 0

    def __init__(self, **given: Any) -> None:
        raise AssertionError("a loaded object's __init__ does not run")

    @reconstructor
    def wake(self) -> None:
        self.woken = 1


@pytest.mark.parametrize("make", ["builder", "by_recipe"])
def test_cached_instance_is_what_a_load_gives(make):
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine, tables=[Thing.__table__])
    entity = entity_of(Thing)
    entity.mapper.registry.configure()
    build = getattr(rebuild, make)(entity.mapper, entity.attributes)
    statements: list[str] = []
    with engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO things VALUES (1, 'n', NULL, 3, 4, 'L')")
    with Session(engine) as s, Session(engine) as reference:
        cached, loaded = build(s, [(1, "n", None, 3, 4)])[0], reference.get(Thing, 1)
        from sqlalchemy import event

        event.listen(engine, "before_cursor_execute", lambda *a: statements.append(a[2].split()[0]))
        for one, session in ((cached, s), (loaded, reference)):
            state = inspect(one)
            assert state.persistent
            assert state.session is session
            assert one not in session.dirty
            assert not session.is_modified(one)
            assert "large" in state.unloaded
            assert session.get(Thing, 1) is one
            assert one.at == Point(3, 4)
            assert statements == []
        assert inspect(cached).identity_key == inspect(loaded).identity_key
        plain = {k: v for k, v in vars(loaded).items() if k != "_sa_instance_state"}
        if make == "builder":
            assert {k: v for k, v in vars(cached).items() if k != "_sa_instance_state"} == plain
        assert cached.large == "L"
        cached.name = "changed"
        assert cached in s.dirty
        statements.clear()
        s.flush()
        assert statements == ["UPDATE"]
        s.rollback()
        assert cached.name == "n"  # read again
        assert build(s, [(1, "older", None, 3, 4)]) == [cached]
        assert cached.name == "n"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"__cached__": Cached(unique=["missing"])}, "missing"),
        ({"__cached__": Cached(), "kind": mapped_column(String), "__mapper_args__": {"polymorphic_on": "kind"}}, "inheritance"),
        ({"__cached__": Cached(unique=["price"]), "price": mapped_column(Numeric)}, "two texts"),
        ({"__cached__": Cached(unique=["n"]), "n": mapped_column(String(collation="C"))}, "two texts"),
    ],
    ids=["unknown attribute", "inheritance", "numeric key", "collated key"],
)
def test_declaration_that_cannot_be_kept_is_an_error(body, message):
    class Own(DeclarativeBase):
        pass

    with pytest.raises(CacheDeclarationError, match=message):
        type(
            "Bad",
            (Own,),
            {"__tablename__": "bad", "__module__": __name__, "id": mapped_column(Integer, primary_key=True), **body},
        )


def test_entity_without_a_primary_key_is_an_error():
    class Own(DeclarativeBase):
        pass

    body = {"__tablename__": "bad", "__module__": __name__, "n": mapped_column(Integer), "__cached__": Cached()}
    with pytest.raises(ArgumentError, match="primary key"):
        type("Bad", (Own,), body)


@pytest.mark.parametrize("limit", [0, -1, None, True, 10**6])
def test_list_key_needs_a_bound(limit):
    with pytest.raises(CacheDeclarationError, match="limit"):
        ListKey("user_id", limit=limit)


def test_subclass_of_a_cached_entity_is_refused():
    with pytest.raises(CacheDeclarationError, match="inherits"):
        type("Sub", (Thing,), {"__module__": __name__})


class Scoped(TenantScoped, Base):
    __tablename__ = "scoped"
    id: Mapped[int] = mapped_column(primary_key=True)
    day: Mapped[date]
    __cached__ = Cached(unique=[("id", "day")])


def test_names_tell_tenants_and_values_apart():
    entity = entity_of(Scoped)
    key = entity.keys[("id", "day")]
    with pytest.raises(CacheKeyError):
        entity.name_of(key, (1, date(2026, 1, 1)), ["a"])
    names = {entity.name_of(key, (n, date(2026, 1, d)), t) for n in (1, 11) for d in (1, 11) for t in ("a", "a:1", "a%3A1")}
    assert len(names) == 12
    with pytest.raises(CacheKeyError):
        entity.name_of(key, (1, datetime(2026, 1, 1)), "a")  # noqa: DTZ001  naive, as PostgreSQL's timestamp is


def test_texts_that_postgresql_takes_for_equal_are_no_key():
    for kind in (CITEXT(), Text(collation="und-ci"), String(collation="und-ci"), CHAR(3)):
        with pytest.raises(CacheDeclarationError, match="two texts of one value"):
            key_text(Column("name", kind), owner="X")


class Numbered(Base):
    __tablename__ = "numbered"
    id: Mapped[int] = mapped_column(primary_key=True)
    __cached__ = Cached()


def test_many_names_are_those_of_one_by_one():
    entity = entity_of(Numbered)
    for keys in ([1, 22, 333], [1], []):
        assert entity.primary_names(keys, "a") == [entity.name_of(entity.primary, (key,), "a") for key in keys]
    for wrong in ([1, True], [1, "2"], [1, None]):
        with pytest.raises(CacheKeyError):
            entity.primary_names(wrong, "a")


def test_what_equals_a_tenant_is_not_taken_for_one():
    entity = entity_of(Scoped)
    assert entity.prefix(entity.primary, "a") == entity.prefix(entity.primary, "a") == "scoped::a"
    for wrong in (True, 1, None, ["a"]):
        with pytest.raises(CacheKeyError):
            entity.prefix(entity.primary, wrong)
