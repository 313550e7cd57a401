"""A cluster's life through the command line: init, status, locate, pin, server; each one can be run again."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
from collections import Counter
from urllib.parse import urlparse

import psycopg
import pytest

from shardkit import ShardKit
from shardkit.catalog.membership import plan_joining
from shardkit.catalog.overview import current_map
from shardkit.core.hashing import shard_of
from shardkit.core.ids import pack
from shardkit.db.servers import prepare_server
from shardkit.schema.bootstrap import carry_out, plan_init
from shardkit.settings import Settings
from tests.acceptance.program import PROGRAM, ROOT, environment, refused, run, settings_file

MODELS = """
from shardkit import ShardedBase, ShardKey, TenantScoped
from sqlalchemy.orm import Mapped, mapped_column

class Order(TenantScoped, ShardedBase):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(ShardKey, primary_key=True)
"""


@pytest.fixture
def databases(shardkit_databases):
    return shardkit_databases(3)


@pytest.fixture
def config(databases, tmp_path):
    return settings_file(tmp_path / "shardkit.toml", databases)


def settings_of(databases) -> Settings:
    return Settings(catalog_url=databases.catalog_url, servers=databases.servers)


def schemas(url: str) -> list[str]:
    """What we put into a database: our schemas."""
    with psycopg.connect(url) as connection:
        found = connection.execute("SELECT nspname FROM pg_namespace WHERE nspname ~ '^(shardkit|s[0-9]{4})' ORDER BY 1")
        return [name for (name,) in found]


def contents(databases) -> dict[str, list[str]]:
    return {url: schemas(url) for url in (databases.catalog_url, *databases.servers.values())}


def init(config, *more, **how):
    return run("init", "--config", config, "--shards", 16, "--yes", *more, **how)


def test_local_up_init_status(tmp_path):
    place = {"cwd": tmp_path, "env": {"SHARDKIT_CONFIG": ".shardkit/local/shardkit.toml"}}
    try:
        run("local", "up", "--servers", 2, "--no-redis", **place)
        done = run("init", "--shards", 64, "--yes", **place)
        assert done.stdout == ""
        assert "ready: 64 shards on 2 servers, map version 1" in done.stderr
        status = json.loads(run("status", "--json", **place).stdout)
        assert [(s["name"], s["shards"], s["reachable"]) for s in status["servers"]] == [("pg1", 32, True), ("pg2", 32, True)]
        assert "pg2" in run("status", **place).stdout
    finally:
        run("local", "down", "--purge", "--yes", **place)


def test_dry_run_changes_nothing(databases, config):
    done = run("init", "--config", config, "--shards", 16, "--dry-run")
    assert "16 shards" in done.stderr
    assert not any(contents(databases).values())
    init(config)
    before = contents(databases)
    run("pin", "acme", 3, "--config", config, "--dry-run")
    assert contents(databases) == before
    assert current_map(settings_of(databases)).version == 1


@pytest.mark.parametrize("shards", [4096, 8192])
def test_who_takes_every_number_hears_what_he_gives_up(databases, config, shards):
    said = run("init", "--config", config, "--shards", shards, "--dry-run").stderr
    assert ("isolated" in said) == (shards == 8192)
    assert ("take 4096" in said) == (shards == 8192)
    assert not any(contents(databases).values())


def test_without_a_terminal_nobody_is_asked(databases, config):
    assert "--yes" in refused("init", "--config", config, code=2)
    assert not any(contents(databases).values())


def test_on_a_terminal_one_is_asked(databases, config):
    mine, theirs = pty.openpty()
    command = [sys.executable, "-c", PROGRAM, "init", "--config", str(config), "--shards", "16"]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment(), cwd=ROOT) as process:
        os.close(theirs)
        shown = b""
        while b"Make this cluster? [y/N]" not in shown:
            assert select.select([mine], [], [], 120)[0], shown
            shown += os.read(mine, 4096)
        os.write(mine, b"n\n")
        assert process.wait(120) == 1
    os.close(mine)
    assert not any(contents(databases).values())


def test_models_are_in_every_shard(databases, config, tmp_path):
    (tmp_path / "cli_models.py").write_text(MODELS, "utf-8")
    init(config, "--models", "cli_models:ShardedBase", cwd=tmp_path)
    with psycopg.connect(databases.servers["pg2"]) as connection:
        tables = connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname ~ '^s[0-9]' AND tablename = 'orders'")
        shards = len(current_map(settings_of(databases)).shards_on("pg2"))
        assert tables.fetchone() == (shards,)


def test_weights_and_named_servers(databases, tmp_path):
    urls = [f"--server={name}={url}" for name, url in list(databases.servers.items())[:2]]
    env = {"SHARDKIT_CATALOG_URL": databases.catalog_url}
    run("init", "--shards", 16, "--yes", "--weight", "pg1=3", "--tenant-type", "int", *urls, env=env)
    found = current_map(Settings(catalog_url=databases.catalog_url))
    assert (len(found.shards_on("pg1")), len(found.shards_on("pg2"))) == (12, 4)
    assert found.tenant_type == "int"


def test_stopped_init_goes_on(databases, config):
    class Stopped(Exception):
        pass

    done = 0

    def stop(_count):
        nonlocal done
        done += 1
        if done == 5:
            raise Stopped

    settings = settings_of(databases)
    plan = plan_init(settings, servers=databases.servers, shard_count=16)
    with pytest.raises(Stopped):
        carry_out(settings, plan, progress=stop)
    assert "not finished" in refused("status", "--config", config)
    assert "16 shards" in refused("init", "--config", config, "--shards", 32, "--yes")
    assert "weight" in refused("init", "--config", config, "--shards", 16, "--weight", "pg1=2", "--yes")
    again = init(config)
    assert "go on with the init" in again.stderr
    assert current_map(settings).cluster_id == plan.cluster_id
    run("status", "--config", config)


def test_killed_init_goes_on(databases, config):
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "init", "--config", str(config), "--shards", "512", "--yes"],
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        while process.poll() is None and not any(n.startswith("s0") for n in schemas(databases.servers["pg1"])):
            pass
        process.kill()
    if process.returncode:  # it did not win the race
        run("init", "--config", config, "--shards", 512, "--yes")
    status = json.loads(run("status", "--config", config, "--json").stdout)
    assert status["healthy"]
    assert sum(server["shards"] for server in status["servers"]) == 512


def test_two_inits_at_once_make_one_cluster(databases, config):
    command = [sys.executable, "-c", PROGRAM, "init", "--config", str(config), "--shards", "64", "--yes"]
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, env=environment(), **quiet) for _ in range(2)]
    said = [process.communicate(timeout=240)[1] for process in both]
    assert 0 in [process.returncode for process in both], said
    assert "Traceback" not in "".join(said)
    assert json.loads(run("status", "--config", config, "--json").stdout)["healthy"]


def test_status_finds_missing_and_extra_schemas(databases, config):
    init(config)
    with psycopg.connect(databases.servers["pg1"]) as connection:
        shard = current_map(settings_of(databases)).shards_on("pg1")[0]
        connection.execute(f"ALTER SCHEMA s{shard:04d}_e1 RENAME TO s{shard:04d}_e9")
    status = json.loads(run("status", "--config", config, "--json", code=3).stdout)
    problems = {server["name"]: server["problems"] for server in status["servers"]}
    assert [p.partition(":")[0] for p in problems["pg1"]] == [
        "1 schemas of the map are missing",
        "1 schemas the map does not place here (copies of a move, or left over)",
    ]
    assert problems["pg2"] == []
    assert not status["healthy"]


def test_status_of_a_server_that_is_gone(databases, config):
    init(config)
    text = config.read_text("utf-8").replace(urlparse(databases.servers["pg3"]).path, "/nobody_made_this")
    config.write_text(text, "utf-8")
    done = run("status", "--config", config, code=3)
    assert "nobody_made_this" in done.stdout
    assert done.stdout.count(" ok") == 2


def test_status_of_a_server_behind_the_wrong_url(databases, config):
    init(config)
    text = config.read_text("utf-8").replace(databases.servers["pg3"], databases.servers["pg2"])
    config.write_text(text, "utf-8")
    assert "is not this server" in run("status", "--config", config, code=3).stdout


def test_locate_a_tenant_and_an_id(databases, config):
    init(config)
    route = json.loads(run("locate", "größe", "--config", config, "--json").stdout)
    assert route["shard"] == shard_of("größe", tenant_type="str", shard_count=16)
    key = pack(1_800_000_000_000, shard=5, sequence=1)
    found = json.loads(run("locate", key, "--id", "--config", config, "--json").stdout)
    assert (found["shard"], found["tenant"], found["born"]) == (5, None, "2027-01-15T08:00:00.000+00:00")
    decoded = json.loads(run("id", "decode", key, "--json").stdout)
    assert decoded == {"id": key, "born": found["born"], "ms": 1_800_000_000_000, "shard": 5, "sequence": 1}


def test_locate_int_tenants(config):
    init(config, "--tenant-type", "int")
    route = json.loads(run("locate", "--json", "--config", config, "--", "-42").stdout)
    assert (route["tenant"], route["shard"]) == (-42, shard_of(-42, tenant_type="int", shard_count=16))


def test_pin_and_take_it_away(databases, config):
    init(config)
    home = shard_of("acme", tenant_type="str", shard_count=16)
    other = (home + 1) % 16
    assert "moves no rows" in run("pin", "acme", other, "--config", config, "--yes").stderr
    assert "so it is already" in run("pin", "acme", other, "--config", config, "--yes").stderr
    found = json.loads(run("locate", "acme", "--config", config, "--json").stdout)
    assert (found["shard"], found["pinned"]) == (other, True)
    run("pin", "acme", "--remove", "--config", config, "--yes")
    assert json.loads(run("locate", "acme", "--config", config, "--json").stdout)["shard"] == home


def test_pin_that_would_leave_rows_behind(databases, config, tmp_path):
    (tmp_path / "cli_models.py").write_text(MODELS, "utf-8")
    init(config, "--models", "cli_models:ShardedBase", cwd=tmp_path)
    shardmap = current_map(settings_of(databases))
    route = shardmap.locate("acme")
    with psycopg.connect(databases.servers[route.server]) as connection:
        connection.execute(f"INSERT INTO {route.schema}.orders (id, tenant_id) VALUES (1, 'acme')")
    other = (route.shard + 1) % 16
    assert "orders" in refused("pin", "acme", other, "--config", config, "--yes")
    assert current_map(settings_of(databases)).version == shardmap.version
    run("pin", "neighbour", (shardmap.locate("neighbour").shard + 1) % 16, "--config", config, "--yes")
    assert "they stay behind" in run("pin", "acme", other, "--config", config, "--yes", "--force").stderr


def test_server_joins_and_leaves(databases, tmp_path):
    config = settings_file(tmp_path / "shardkit.toml", databases)
    two = [f"--server={name}={databases.servers[name]}" for name in ("pg1", "pg2")]
    init(config, *two)
    add = ("server", "add", "pg3", databases.servers["pg3"], "--config", config)
    run(*add, "--dry-run")
    assert schemas(databases.servers["pg3"]) == []
    run(*add, "--yes")
    assert "in the map already" in run(*add, "--yes").stderr
    listed = json.loads(run("server", "list", "--config", config, "--json").stdout)
    assert {server["name"]: server["shards"] for server in listed} == {"pg1": 8, "pg2": 8, "pg3": 0}
    run("status", "--config", config)
    assert "is a server of this cluster" in refused(
        "server", "add", "pg4", databases.servers["pg3"], "--config", config, "--yes"
    )
    assert "8 shards" in refused("server", "remove", "pg1", "--config", config, "--yes")
    run("server", "remove", "pg3", "--config", config, "--yes")
    assert "pg3" not in run("server", "list", "--config", config).stdout
    assert "pg3" in refused("server", "remove", "pg3", "--config", config, "--yes")
    run(*add, "--yes")


def test_weight_and_state_of_a_server_change(databases, tmp_path):
    config = settings_file(tmp_path / "shardkit.toml", databases)
    init(config, *(f"--server={name}={databases.servers[name]}" for name in ("pg1", "pg2")))

    def planned():
        found = json.loads(run("plan", "--config", config, "--json").stdout)
        return Counter(move["target"] for move in found["moves"])

    def change(*what):
        return run("server", "change", *what, "--config", config).stderr

    version = current_map(settings_of(databases)).version
    assert "weight of server 'pg1': 1 -> 3" in change("pg1", "--weight", "3", "--dry-run")
    assert current_map(settings_of(databases)).version == version
    change("pg1", "--weight", "3", "--yes")
    assert planned() == {"pg1": 4}
    assert "already" in change("pg1", "--weight", "3")
    assert "active -> draining" in change("pg2", "--state", "draining", "--weight", "2", "--yes")
    assert planned() == {"pg1": 8}
    change("pg2", "--state", "active", "--yes")  # a drain is taken back
    change("pg1", "--weight", "2", "--yes")
    assert planned() == {}
    change("pg2", "--state", "down", "--yes")
    assert planned() == {}


def test_programs_follow_a_server_to_its_new_address(databases, tmp_path, eventually):
    config = settings_file(tmp_path / "shardkit.toml", databases)
    init(config, *(f"--server={name}={databases.servers[name]}" for name in ("pg1", "pg2")))
    change = ("server", "change", "pg2", "--config", config, "--yes", "--url")
    there = databases.servers["pg2"].replace("127.0.0.1", "localhost")
    before = current_map(settings_of(databases))
    assert "is another server" in refused(*change, databases.servers["pg1"])
    assert "holds no shardkit identity" in refused(*change, databases.servers["pg3"])
    assert "does not answer" in refused(*change, "postgresql://127.0.0.1:1")
    assert "could not be parsed" in refused(*change, "postgresql://[half/x")
    assert current_map(settings_of(databases)) == before
    tenant = next(name for name in map(str, range(100)) if before.locate(name).server == "pg2")
    with ShardKit(databases.catalog_url) as kit:

        def host():
            with kit.session(tenant) as session:
                return session.connection().connection.driver_connection.info.host

        assert host() == "127.0.0.1"
        run(*change, urlparse(there)._replace(path="").geturl())  # what it leaves out is as before
        eventually(lambda: host() == "localhost")
    assert current_map(settings_of(databases)).server("pg2").dsn == before.server("pg2").dsn.replace("127.0.0.1", "localhost")


def test_stopped_server_add_goes_on(databases, config):
    init(config, f"--server=pg1={databases.servers['pg1']}")
    settings = settings_of(databases)
    joining = plan_joining(settings, "pg2", databases.servers["pg2"])
    with psycopg.connect(databases.servers["pg2"], autocommit=True) as connection:  # the first step, and then it is killed
        cluster_id = current_map(settings).cluster_id
        prepare_server(connection, cluster_id=cluster_id, server_id=joining.server.server_id)
    run("server", "add", "pg2", "--config", config, "--yes")  # its URL is in the settings
    run("status", "--config", config)
    assert list(current_map(settings).servers) == ["pg1", "pg2"]


def test_server_that_is_gone_for_good(databases, config, tmp_path):
    init(config, *[f"--server={name}={databases.servers[name]}" for name in ("pg1", "pg2")])
    run("server", "add", "pg3", databases.servers["pg3"], "--config", config, "--yes")
    broken = tmp_path / "broken.toml"
    broken.write_text(config.read_text("utf-8").replace(urlparse(databases.servers["pg3"]).path, "/gone"), "utf-8")
    before = current_map(settings_of(databases))
    assert "nothing was" in refused("server", "remove", "pg3", "--config", broken, "--yes")
    assert current_map(settings_of(databases)) == before
    run("status", "--config", config)
    run("server", "remove", "pg3", "--unreachable", "--config", broken, "--yes")
    assert list(current_map(settings_of(databases)).servers) == ["pg1", "pg2"]


def test_password_is_shown_nowhere(databases, config):
    secret = "not-for-anybody"
    parts = urlparse(databases.servers["pg1"])
    url = parts._replace(netloc=f"{parts.username}:{secret}@{parts.hostname}:{parts.port}").geturl()
    text = config.read_text("utf-8").replace(databases.servers["pg1"], url)
    config.write_text(text, "utf-8")
    done = [init(config), run("status", "--config", config), run("status", "--config", config, "--json")]
    done.append(run("server", "list", "--config", config))
    wrong = url.replace(f":{parts.port}", ":1")
    done.append(run("server", "add", "pgx", wrong, "--config", config, "--yes", code=1))
    assert secret not in "".join(d.stdout + d.stderr for d in done)
