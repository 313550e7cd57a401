"""Global tables live in one place, reference tables on every server alike, and a shard can be joined with them."""

from __future__ import annotations

import psycopg
import pytest
from locallab import drop_subscriptions
from sqlalchemy import ForeignKey, MetaData, select
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.orm import Mapped, mapped_column

from shardkit import Settings, ShardedBase, ShardKey, ShardKit, TenantScoped
from shardkit.catalog.membership import join, leave, plan_joining, plan_leaving
from shardkit.db.reference import drop_slot
from shardkit.schema.blueprint import from_metadata
from shardkit.schema.bootstrap import initialize
from shardkit.schema.shared import make_shared_tables


class Base(ShardedBase):
    __abstract__ = True
    metadata = MetaData()


class Region(Base):
    __tablename__ = "regions"
    __shardkit__ = {"kind": "reference"}
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


class Country(Base):
    __tablename__ = "countries"
    __shardkit__ = {"kind": "reference"}
    code: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    region: Mapped[int | None] = mapped_column(ForeignKey(Region.id))


class Plan(Base):
    __tablename__ = "plans"
    __shardkit__ = {"kind": "global"}
    name: Mapped[str] = mapped_column(primary_key=True)


class Order(TenantScoped, Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(ShardKey, primary_key=True)
    country: Mapped[str]


@pytest.fixture
def place(shardkit_databases):
    databases = shardkit_databases(2)
    settings = Settings(catalog_url=databases.catalog_url)
    initialize(settings, servers=databases.servers, shard_count=8, blueprint=from_metadata(Base.metadata))
    yield databases, settings
    drop_subscriptions(databases.servers.values())


def on_every_server(databases, query):
    answers = set()
    for url in databases.servers.values():
        with psycopg.connect(url, autocommit=True) as connection:
            answers.add(connection.execute(query).fetchone()[0])
    return answers


def test_rows_written_once_are_on_every_server_and_joined_in_shards(place, eventually):
    databases, settings = place
    assert make_shared_tables(settings, Base.metadata) == (["plans"], ["regions", "countries"])
    with ShardKit(settings=settings) as kit:
        with kit.global_session() as session:
            session.add_all([Country(code="SE", name="Sweden"), Country(code="PE", name="Peru"), Plan(name="free")])
            session.commit()
        eventually(lambda: on_every_server(databases, "SELECT count(*) FROM shardkit_reference.countries") == {2})
        assert len({kit.locate(t).server for t in ("acme", "beta", "gamma", "delta")}) == 2
        for tenant in ("acme", "beta", "gamma", "delta"):
            with kit.begin(tenant) as session:
                session.add(Order(country="PE"))
            joined = select(Country.name).join(Order, Order.country == Country.code)
            with kit.session(tenant) as session:
                assert session.scalars(joined).all() == ["Peru"]
            with kit.read(tenant) as session:
                assert session.scalars(joined).all() == ["Peru"]
        with kit.global_session() as session:
            assert session.scalars(select(Plan.name)).all() == ["free"]
            session.delete(session.get(Country, "SE"))
            session.commit()
        eventually(lambda: on_every_server(databases, "SELECT count(*) FROM shardkit_reference.countries") == {1})


def test_followers_are_read_only_for_the_program(place):
    _, settings = place
    make_shared_tables(settings, Base.metadata)
    with ShardKit(settings=settings) as kit, kit.session("acme") as session:
        session.add(Country(code="XX", name="nowhere"))
        with pytest.raises(ProgrammingError, match="permission denied"):
            session.flush()


def test_server_that_joins_follows_and_one_that_leaves_keeps_no_log(place, shardkit_databases, eventually):
    databases, settings = place
    make_shared_tables(settings, Base.metadata)
    with psycopg.connect(databases.catalog_url, autocommit=True) as connection:
        connection.execute("INSERT INTO shardkit_reference.regions VALUES (7)")
        url = shardkit_databases(1).servers["pg1"]
        join(settings, plan_joining(settings, "pg9", url))
        make_shared_tables(settings, Base.metadata)
        with psycopg.connect(url, autocommit=True) as fresh:
            assert fresh.execute("SELECT id FROM shardkit_reference.regions").fetchall() == [(7,)]
        slots = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()"
        eventually(
            lambda: connection.execute(slots).fetchone() == (3,)
        )  # the first copy of a table has one of its own, dropped late
        leave(settings, plan_leaving(settings, "pg9"))
        assert connection.execute(slots).fetchone() == (2,)
        connection.execute("UPDATE shardkit_reference.regions SET id = 8")
        join(settings, plan_joining(settings, "pg9", url))  # and comes back, with what it had
        make_shared_tables(settings, Base.metadata, timeout_s=120)
        with psycopg.connect(url, autocommit=True) as fresh:
            assert fresh.execute("SELECT id FROM shardkit_reference.regions").fetchall() == [(8,)]
        leave(settings, plan_leaving(settings, "pg9"))


def test_servers_begin_anew_where_the_written_copy_was_restored_from_a_dump(place):
    databases, settings = place
    make_shared_tables(settings, Base.metadata)
    with psycopg.connect(databases.catalog_url, autocommit=True) as connection:
        connection.execute("INSERT INTO shardkit_reference.regions VALUES (7)")
        make_shared_tables(settings, Base.metadata)
        slots = "SELECT slot_name FROM pg_replication_slots WHERE database = current_database()"
        for (slot,) in connection.execute(slots).fetchall():
            drop_slot(connection, slot=slot)  # a dump has none
        connection.execute("UPDATE shardkit_reference.regions SET id = 8")  # in a stream that nobody follows
        make_shared_tables(settings, Base.metadata, timeout_s=120)
    assert on_every_server(databases, "SELECT string_agg(id::text, ',') FROM shardkit_reference.regions") == {"8"}


def test_run_again_it_changes_nothing_and_brings_what_is_new(place):
    databases, settings = place
    early = MetaData()
    Country.__table__.to_metadata(early)
    Region.__table__.to_metadata(early)
    make_shared_tables(settings, early)
    with psycopg.connect(databases.catalog_url, autocommit=True) as connection:
        connection.execute("INSERT INTO shardkit_reference.regions VALUES (7)")
    late = Base.metadata
    for _ in range(2):
        make_shared_tables(settings, late)
        assert on_every_server(databases, "SELECT sum(id) FROM shardkit_reference.regions") == {7}
