"""A cluster is made whole or not at all, and a stopped init goes on where it was."""

from __future__ import annotations

import socket
import subprocess
import sys
import textwrap

import psycopg
import pytest
from fleet import BLUEPRINT, Order
from psycopg import sql
from psycopg.conninfo import make_conninfo
from sqlalchemy import CheckConstraint, func, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from shardkit import Settings, ShardKey, ShardKit, TenantScoped
from shardkit.db.servers import _roles
from shardkit.errors import (
    ClusterExistsError,
    NameRejectedError,
    NotInitializedError,
    PlacementError,
    ServerDownError,
    SettingsError,
    TenantKeyError,
)
from shardkit.local.databases import FreshDatabases
from shardkit.schema.blueprint import from_metadata
from shardkit.schema.bootstrap import initialize


class IntBase(DeclarativeBase):
    pass


class Item(TenantScoped, IntBase):
    __tablename__ = "items"
    id: Mapped[int] = mapped_column(ShardKey, primary_key=True)
    tenant_id: Mapped[int]
    share: Mapped[str] = mapped_column(server_default=text("'100%'"))
    __table_args__ = (CheckConstraint("share LIKE '%\\%'", name="percent"),)


@pytest.fixture
def databases(shardkit_databases):
    return shardkit_databases(2)


def init(databases, **given):
    settings = Settings(catalog_url=databases.catalog_url)
    return initialize(settings, **{"servers": databases.servers, "shard_count": 8, "blueprint": BLUEPRINT, **given})


def schemas(url):
    with psycopg.connect(url) as connection:
        return [row[0] for row in connection.execute("SELECT nspname FROM pg_namespace WHERE nspname ~ '^(s[0-9]|shardkit)'")]


def untouched(databases):
    return not any(schemas(url) for url in [databases.catalog_url, *databases.servers.values()])


@pytest.mark.parametrize(
    "given",
    [
        *({"shard_count": bad} for bad in (0, -1, 3, 100, 8193, 16384, 2.0, True, "8", None)),
        *({"tenant_type": bad} for bad in ("bool", "float", "", None, bool, "uuid")),
        {"servers": {}},
        {"weights": {"pg1": 0.0}},
        {"weights": {"pg1": -1.0}},
        {"weights": {"pg1": float("nan")}},
        {"weights": {"pg9": 2.0}},
    ],
    ids=repr,
)
def test_bad_parameters_are_refused_before_anything_is_changed(databases, given):
    with pytest.raises((SettingsError, PlacementError)):
        init(databases, **given)
    assert untouched(databases)


@pytest.mark.parametrize("name", ["", "Pg1", "1pg", "pg 1", 'pg"; DROP', "catalog", "x" * 32, "pg\n", 7])
def test_odd_server_names_are_refused(databases, name):
    with pytest.raises(NameRejectedError):
        init(databases, servers={name: databases.servers["pg1"]})
    assert untouched(databases)


def test_a_server_that_is_not_there_is_found_before_anything_is_changed(databases):
    with socket.socket() as held:  # it stays ours, and nobody listens
        held.bind(("127.0.0.1", 0))
        nobody = f"postgresql://shardkit@127.0.0.1:{held.getsockname()[1]}/nothing"
        with pytest.raises(ServerDownError, match="'pg9'"):
            init(databases, servers={**databases.servers, "pg9": nobody})
    assert untouched(databases)


def test_one_database_under_two_names_is_refused(databases):
    url = databases.servers["pg1"]
    with pytest.raises(SettingsError, match="same database"):
        init(databases, servers={"pg1": url, "pg2": url + "?application_name=other"})
    assert untouched(databases)


def test_the_catalogs_database_cannot_be_a_server_too(databases):
    with pytest.raises(SettingsError, match="same database"):
        init(databases, servers={"pg1": databases.catalog_url})
    assert untouched(databases)


def test_a_database_that_is_not_utf8_is_refused(databases, local_cluster):
    url = databases.servers["pg1"]
    with psycopg.connect(url, autocommit=True) as connection:
        name = connection.info.dbname + "_latin"
        connection.execute(
            sql.SQL("CREATE DATABASE {} ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0").format(sql.Identifier(name))
        )
        try:
            latin = psycopg.conninfo.make_conninfo(url, dbname=name)
            with pytest.raises(SettingsError, match="UTF8"):
                init(databases, servers={"pg1": latin})
            with pytest.raises(SettingsError, match="UTF8"):
                initialize(Settings(catalog_url=latin), servers=databases.servers, shard_count=8)
            assert untouched(databases)
        finally:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def test_a_second_init_is_refused(databases):
    found = init(databases)
    with pytest.raises(ClusterExistsError):
        init(databases)
    with pytest.raises(ClusterExistsError):
        init(databases, shard_count=16)
    with ShardKit(catalog_url=databases.catalog_url) as kit:
        assert kit.map == found


def test_a_server_of_another_cluster_is_refused(databases, shardkit_databases):
    init(databases)
    other = shardkit_databases(1)
    with pytest.raises(ClusterExistsError, match="another cluster"):
        initialize(Settings(catalog_url=other.catalog_url), servers={"pg1": databases.servers["pg1"]}, shard_count=8)
    with pytest.raises(NotInitializedError):
        ShardKit(catalog_url=other.catalog_url)


class Stop(Exception):
    pass


def stop_at(number):
    done = []

    def progress(count):
        done.append(count)
        if len(done) == number:
            raise Stop

    return progress


@pytest.mark.parametrize("number", [1, 5, 8])
def test_a_stopped_init_is_finished_by_the_next_one(databases, number):
    with pytest.raises(Stop):
        init(databases, progress=stop_at(number))
    with pytest.raises(NotInitializedError, match="not finished"):
        ShardKit(catalog_url=databases.catalog_url)
    found = init(databases)
    made = [name for url in databases.servers.values() for name in schemas(url) if not name.startswith("shardkit")]
    assert sorted(made) == [f"s{shard:04}_e1" for shard in range(8)]
    with ShardKit(catalog_url=databases.catalog_url) as kit:
        assert kit.map == found
        with kit.begin("acme") as s:
            s.add(Order(note="fine"))


@pytest.mark.parametrize("given", [{"shard_count": 16}, {"tenant_type": "int"}, {"weights": {"pg1": 3.0}}], ids=repr)
def test_a_stopped_init_is_not_finished_with_other_parameters(databases, given):
    with pytest.raises(Stop):
        init(databases, progress=stop_at(2))
    with pytest.raises(ClusterExistsError, match="not finished"):
        init(databases, **given)
    init(databases)


def test_a_stopped_init_is_not_finished_on_other_servers(databases, shardkit_databases):
    with pytest.raises(Stop):
        init(databases, progress=stop_at(2))
    with pytest.raises(ClusterExistsError):
        init(databases, servers={"pg1": databases.servers["pg1"]})
    init(databases)


def test_a_killed_init_is_finished_by_the_next_one(databases):
    code = """
        import os, sys
        sys.path.insert(0, "tests/integration")
        from fleet import BLUEPRINT
        from shardkit import Settings
        from shardkit.schema.bootstrap import initialize
        catalog, one, two = sys.argv[1:]
        initialize(Settings(catalog_url=catalog), servers={"pg1": one, "pg2": two}, shard_count=8, blueprint=BLUEPRINT,
                   progress=lambda _: os.kill(os.getpid(), 9))
    """
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), databases.catalog_url, *databases.servers.values()], check=False
    )
    assert child.returncode == -9
    assert len(init(databases).placements) == 8


@pytest.fixture
def by_plain(databases):
    """The databases named with the login ``plain``, which may make schemas in them and nothing else."""
    urls = [*databases.servers.values(), databases.catalog_url]
    for url in urls:
        with psycopg.connect(url, autocommit=True) as connection:
            _roles(connection)  # somebody else has made them
            if connection.execute("SELECT FROM pg_roles WHERE rolname = 'plain'").fetchone() is None:
                connection.execute("CREATE ROLE plain LOGIN")
            name = sql.Identifier(connection.info.dbname)
            connection.execute(sql.SQL("GRANT CREATE ON DATABASE {} TO plain").format(name))
    named = [make_conninfo(url, user="plain") for url in urls]
    yield FreshDatabases(servers=dict(zip(databases.servers, named, strict=False)), catalog_url=named[-1]), urls
    for url in urls:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("DROP OWNED BY plain CASCADE")
    for url in urls:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("DROP ROLE IF EXISTS plain")


def test_a_login_makes_a_cluster_with_roles_that_were_made_for_it(by_plain):
    named, urls = by_plain
    with pytest.raises(SettingsError, match="its login cannot take on; GRANT them to it; nothing was changed"):
        init(named)
    for url in urls:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("GRANT shardkit_app, shardkit_operator TO plain")
    init(named)
    with ShardKit(catalog_url=named.catalog_url) as kit:
        with kit.begin("acme") as s:
            s.add(Order(note="fine"))
        assert kit.fan_out_scalar(select(func.count()).select_from(Order)) == 1


def test_a_cluster_of_int_tenants(databases):
    init(databases, tenant_type="int", blueprint=from_metadata(IntBase.metadata))
    count = select(func.count()).select_from(Item)
    tenants = [-(2**63), -1, 0, 42, 2**63 - 1]
    with ShardKit(catalog_url=databases.catalog_url) as kit:
        for tenant in tenants:
            with kit.begin(tenant) as s:
                s.add_all([Item(), Item()])
                s.execute(text("INSERT INTO items DEFAULT VALUES"))
                s.execute(Item.__table__.insert().values(share="7%"))
        for tenant in tenants:
            with kit.session(tenant) as s:
                assert s.scalar(count) == 4
                assert s.scalar(text("SELECT count(*) FROM items")) == 4
                assert set(s.scalars(select(Item.tenant_id))) == {tenant}
                assert sorted(s.scalars(select(Item.share))) == ["100%", "100%", "100%", "7%"]
        for bad in ("42", True, 1.0, 2**63):
            with pytest.raises(TenantKeyError):
                kit.session(bad)


def test_an_operator_must_say_whose_row_it_is_in_raw_sql_too(databases):
    init(databases)
    with ShardKit(catalog_url=databases.catalog_url) as kit, kit.shard(0).session() as s:
        with pytest.raises(Exception, match="tenant_id"):
            s.execute(text("INSERT INTO orders (note) VALUES ('whose?')"))
