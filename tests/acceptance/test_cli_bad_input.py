"""What a user gets wrong: one clear line on stderr that says what to do, exit code 1 or 2, and nothing half done."""

from __future__ import annotations

import socket

import psycopg
import pytest
from psycopg import sql

from shardkit.catalog.overview import current_map
from shardkit.settings import Settings
from tests.acceptance.program import refused, run, settings_file


@pytest.fixture
def databases(shardkit_databases):
    return shardkit_databases(2)


@pytest.fixture
def config(databases, tmp_path):
    return settings_file(tmp_path / "shardkit.toml", databases)


@pytest.fixture
def closed_port():
    with socket.socket() as held:  # it stays ours, and nobody listens
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def objects(databases) -> list[str]:
    """Everything in the databases that an empty one does not have."""
    found = []
    for url in (databases.catalog_url, *databases.servers.values()):
        with psycopg.connect(url) as connection:
            rows = connection.execute(
                "SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname NOT IN ('public', 'information_schema')"
            )
            found += [name for (name,) in rows]
    return sorted(found)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--shards", "100"], 1, "power of two from 1 to 8192"),
        (["--shards", "16384"], 1, "power of two from 1 to 8192"),
        (["--shards", "0"], 1, "power of two from 1 to 8192"),
        (["--shards", "many"], 2, "many"),
        (["--tenant-type", "bool"], 2, "bool"),
        (["--server", "pg1"], 2, "--server takes NAME=VALUE"),
        (["--server", "Pg 1=postgresql://127.0.0.1:1/x"], 1, "cannot name a server"),
        (["--server", 'x"; DROP TABLE y; --=postgresql://127.0.0.1:1/x'], 1, "cannot name a server"),
        (["--server", "catalog=postgresql://127.0.0.1:1/x"], 1, "choose another"),
        (["--server", "pg1=postgresql://[half/x"], 1, "could not be parsed"),
        (["--server", "pg1=postgresql://db.example.org/x"], 1, "sslmode=verify-full"),
        (["--server", "a=b", "--server", "a=c"], 2, "names 'a' twice"),
        (["--weight", "pg1=heavy"], 2, "a weight is a number"),
        (["--weight", "pg1=0"], 1, "weight"),
        (["--weight", "pg1=nan"], 1, "weight"),
        (["--weight", "pg9=2"], 1, "pg9"),
        (["--models", "nowhere:Base"], 1, "package.module:Base"),
        (["--models", "shardkit.errors:DOCS"], 1, "neither a declarative base nor a MetaData"),
        (["--tree", "."], 1, "not an Alembic tree"),
    ],
)
def test_init_refuses(arguments, code, says, databases, config, tmp_path):
    line = refused("init", "--config", config, "--yes", *arguments, code=code, cwd=tmp_path)
    assert says in line
    assert objects(databases) == []


def test_server_that_does_not_answer(databases, config, closed_port):
    url = f"postgresql://127.0.0.1:{closed_port}/nothing"
    line = refused("init", "--config", config, "--yes", "--server", f"pg1={url}")
    assert "server 'pg1' does not answer" in line
    assert objects(databases) == []


def test_database_that_does_not_exist(databases, config):
    url = databases.servers["pg1"] + "_not"
    line = refused("init", "--config", config, "--yes", "--server", f"pg1={url}")
    assert "does not exist" in line
    assert objects(databases) == []


def test_one_database_under_two_names(databases, config):
    url = databases.servers["pg1"]
    line = refused("init", "--config", config, "--yes", "--server", f"a={url}", "--server", f"b={url}")
    assert "'b' and server 'a' are the same database" in line
    line = refused("init", "--config", config, "--yes", "--server", f"a={databases.catalog_url}")
    assert "the catalog are the same database" in line
    assert objects(databases) == []


def test_database_that_is_not_utf8(databases, config, local_cluster):
    name = "shardkit_test_ascii"
    admin = local_cluster.servers[0].url_of("postgres")
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} ENCODING SQL_ASCII LOCALE 'C' TEMPLATE template0")
        try:
            url = local_cluster.servers[0].url_of(name)
            line = refused("init", "--config", config, "--yes", "--server", f"pg1={url}")
            assert "needs UTF8" in line
            assert objects(databases) == []
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_login_without_rights(databases, config, local_cluster):
    server = local_cluster.servers[0]
    name = "shardkit_test_nobody"
    with psycopg.connect(server.url_of("postgres"), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(name)))
        try:
            url = databases.servers["pg1"].replace(f"//{server.user}@", f"//{name}@")
            assert url != databases.servers["pg1"]
            line = refused("init", "--config", config, "--yes", "--server", f"pg1={url}")
            assert "GRANT CREATE ON DATABASE" in line
            assert objects(databases) == []
        finally:
            connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


def test_models_that_postgresql_refuses(databases, config, tmp_path):
    (tmp_path / "bad_models.py").write_text(
        "from sqlalchemy import Column, Integer, MetaData, Table, text\nmetadata = MetaData()\n"
        "Table('t', metadata, Column('id', Integer, server_default=text('no_such_function()')))\n",
        "utf-8",
    )
    line = refused("init", "--config", config, "--yes", "--shards", 4, "--models", "bad_models:metadata", cwd=tmp_path)
    assert "no_such_function() does not exist" in line
    assert "run the same init again" in line
    assert not [name for name in objects(databases) if name.startswith("s0")]
    run("init", "--config", config, "--yes", "--shards", 4)  # with other models it goes on
    run("status", "--config", config)


def test_second_init(databases, config):
    run("init", "--config", config, "--shards", 4, "--yes")
    before = objects(databases), current_map(Settings(catalog_url=databases.catalog_url))
    for shards in (4, 8):
        assert "already holds a cluster" in refused("init", "--config", config, "--shards", shards, "--yes")
    assert (objects(databases), current_map(Settings(catalog_url=databases.catalog_url))) == before


def test_server_of_another_cluster(databases, config, shardkit_databases, tmp_path):
    run("init", "--config", config, "--shards", 4, "--yes")
    others = shardkit_databases(1)
    other = settings_file(tmp_path / "other.toml", others)
    url = databases.servers["pg1"]
    line = refused("init", "--config", other, "--shards", 4, "--yes", "--server", f"pg1={url}")
    assert "belongs to another cluster" in line
    assert objects(others) == []
    run("init", "--config", other, "--shards", 4, "--yes")
    line = refused("server", "add", "pg9", url, "--config", other, "--yes")
    assert "belongs to another cluster" in line
    assert current_map(Settings(catalog_url=others.catalog_url)).version == 1


@pytest.fixture(scope="module")
def cluster(local_cluster, tmp_path_factory):
    """A cluster with int tenants that no test of this module changes."""
    from shardkit.local.databases import fresh_databases

    with fresh_databases(local_cluster.servers, 1) as databases:
        path = settings_file(tmp_path_factory.mktemp("cluster") / "shardkit.toml", databases)
        run("init", "--config", path, "--shards", 4, "--tenant-type", "int", "--yes")
        yield path


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["locate", "acme"], 1, "not a whole number"),
        (["locate", ""], 1, "not a whole number"),
        (["locate", "1_000"], 1, "not a whole number"),
        (["locate", "٣"], 1, "not a whole number"),
        (["locate", "9223372036854775808"], 1, "64 bits"),
        (["locate", "--id", "0"], 1, "between 1 and 2**63 - 1"),
        (["locate", "--id", "x"], 2, "whole number"),
        (["locate", "--id", str(5 << 10)], 1, "shard 5 is not in the map"),
        (["pin", "7", "4"], 1, "shard 4 is not in the map"),
        (["pin", "7"], 2, "give a SHARD, or --remove"),
        (["pin", "7", "1", "--remove"], 2, "give a SHARD, or --remove"),
        (["pin", "acme", "1"], 1, "not a whole number"),
        (["server", "add", "pg1", "postgresql://127.0.0.1:1/x", "--weight", "0"], 1, "weight"),
        (["server", "add", "pg1;", "postgresql://127.0.0.1:1/x"], 1, "cannot name a server"),
        (["server", "add", "pg9"], 2, "[servers.pg9]"),
        (["server", "change", "pg1"], 2, "say what to change"),
        (["server", "change", "pg1", "--weight", "nan"], 1, "a weight is a number above 0"),
        (["server", "change", "pg1", "--state", "off"], 2, "draining"),
        (["server", "change", "pg9", "--weight", "2"], 1, "known: pg1"),
        (["server", "remove", "pg9"], 1, "known: pg1"),
        (["server", "remove", "pg1"], 1, "still holds 4 shards"),
    ],
)
def test_refused(arguments, code, says, cluster):
    assert says in refused(arguments[0], *arguments[1:], "--config", cluster, code=code)
    settings = Settings.from_toml(cluster)
    assert current_map(settings).version == 1


def test_key_over_a_kilobyte(config):
    run("init", "--config", config, "--shards", 4, "--yes")
    run("locate", "k" * 1024, "--config", config)
    assert "at most 1024 bytes" in refused("locate", "é" * 513, "--config", config)
    assert "must not be empty" in refused("locate", "", "--config", config)


@pytest.mark.parametrize("command", [["status"], ["locate", "acme"], ["server", "list"], ["init", "--yes"], ["pin", "a", "1"]])
def test_catalog_is_down(command, tmp_path, closed_port):
    path = tmp_path / "shardkit.toml"
    path.write_text(
        f'catalog_url = "postgresql://127.0.0.1:{closed_port}/c"\n[servers.pg1]\nurl = "postgresql://127.0.0.1/x"\n'
    )
    line = refused(*command, "--config", path)
    assert "the catalog does not answer" in line


def test_catalog_is_empty(config):
    assert "shardkit init" in refused("status", "--config", config)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no catalog_url"),
        ("catalog_url = ", "not valid TOML"),
        ('catalog_url = "postgresql://127.0.0.1/x"\npool_sise = 3', "unknown setting pool_sise"),
        ('catalog_url = "postgresql://127.0.0.1/x"\npool_size = true', "pool_size must be a whole number"),
        ('catalog_url = "postgresql://127.0.0.1/x"\n[servers.pg1]\ndsn = "x"', "has one key, url"),
        ('catalog_url = "postgresql://127.0.0.1/x"\nservers = 3', "has one key, url"),
        ("catalog_url = 5", "catalog_url must be a URL"),
    ],
)
def test_settings_file(text, says, tmp_path):
    path = tmp_path / "shardkit.toml"
    path.write_text(text, "utf-8")
    assert says in refused("status", "--config", path)


def test_settings_file_that_is_not_there(tmp_path):
    assert "cannot be read" in refused("status", "--config", tmp_path / "none.toml")
    assert "SHARDKIT_CATALOG_URL" in refused("status", cwd=tmp_path)


@pytest.mark.parametrize("command", [["demo"], ["local", "up", "--servers", "1"]])
def test_binaries_are_missing(command, tmp_path):
    line = refused(*command, cwd=tmp_path, env={"SHARDKIT_PG_BIN": str(tmp_path)})
    assert "SHARDKIT_PG_BIN" in line
    assert not list(tmp_path.iterdir())
