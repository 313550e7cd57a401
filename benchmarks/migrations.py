"""A revision over every shard, against Alembic once per schema, against one Alembic environment in a loop, and the bare DDL."""

from __future__ import annotations

import compileall
import random
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import psycopg
from alembic import command
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from psycopg import sql
from sqlalchemy import Connection, create_engine
from sqlalchemy.engine import make_url

from benchmarks.harness import Bench
from shardkit import Settings, run_local
from shardkit.core.fleet import CONNECTIONS_WHEN_QUICK, MOST_IN_ONE_TRANSACTION
from shardkit.core.names import schema_name
from shardkit.local.databases import fresh_databases
from shardkit.schema.blueprint import Blueprint, script_at
from shardkit.schema.bootstrap import initialize
from shardkit.schema.drift import check_fleet
from shardkit.schema.fleet import Fleet
from shardkit.schema.tree import Tree
from shardkit.settings import Secret

QUESTION = "How long does one revision take over all shards, against Alembic in a loop and against the bare DDL?"
REVISIONS = 32
ROWS = 100
CONNECTIONS = CONNECTIONS_WHEN_QUICK  # as many as ours takes for a revision like this one
FIRST = "op.create_table('orders', sa.Column('id', sa.BigInteger, primary_key=True), sa.Column('note', sa.Text))"
LAST = "op.add_column('orders', sa.Column('extra', sa.Text))\n    op.create_index('orders_extra', 'orders', ['extra'])"
DDL = "ALTER TABLE orders ADD COLUMN extra TEXT; CREATE INDEX orders_extra ON orders (extra)"
UNDO = "DROP INDEX orders_extra; ALTER TABLE orders DROP COLUMN extra"
REVISION = """from alembic import op
import sqlalchemy as sa
revision = "{name}"
down_revision = {down!r}

def upgrade():
    {up}

def downgrade():
    pass
"""
OUR_ENV = "from shardkit.schema import run_env\nrun_env()\n"
USUAL_ENV = """from alembic import context
connection, schema = context.config.attributes["connection"], context.config.attributes["schema"]
connection.exec_driver_sql("SET search_path TO " + schema)
connection.dialect.default_schema_name = schema
context.configure(connection=connection, target_metadata=None)
with context.begin_transaction():
    context.run_migrations()
"""


class Place:
    """*shards* shards on two servers, one revision behind."""

    def __init__(self, settings: Settings, servers: dict[str, str], home: Path, *, shards: int) -> None:
        self.settings, self.servers = settings, servers
        self.ours, self.usual = _tree(home / "ours", OUR_ENV), _tree(home / "usual", USUAL_ENV)
        line = Tree(self.ours)
        script = script_at(line, _name(REVISIONS - 1))
        rows = f"INSERT INTO orders SELECT n, 'note ' || n FROM generate_series(1, {ROWS}) AS n"
        shard_map = initialize(settings, servers=servers, shard_count=shards, blueprint=Blueprint(f"{script};\n{rows}"))
        self.schemas = {name: [schema_name(s, 1) for s in shard_map.shards_on(name)] for name in servers}

    def reset(self) -> None:
        """One revision back, whoever ran it."""
        for name, url in self.servers.items():
            with psycopg.connect(url, autocommit=True) as connection:
                for schema in self.schemas[name]:
                    if _ahead(connection, schema):
                        back = f"{UNDO}; UPDATE alembic_version SET version_num = '{_name(REVISIONS - 1)}'"
                        _in_schemas(connection, [schema], back)

    def fleet(self) -> int:
        """Ours, with everything it does: trees read, versions read, ledger written."""
        report = Fleet(self.settings, self.ours).migrate()
        if not report.complete:
            raise AssertionError(f"not complete: {report.behind[:3]}")
        return len(report.done)

    def bare(self) -> int:
        """The DDL alone, through as many connections, as many shards in a transaction."""

        def work(job: tuple[str, int]) -> int:
            url, part = self.servers[job[0]], self.schemas[job[0]][job[1] :: CONNECTIONS]
            with psycopg.connect(url, autocommit=True, prepare_threshold=None) as connection:
                for start in range(0, len(part), MOST_IN_ONE_TRANSACTION):
                    _in_schemas(connection, part[start : start + MOST_IN_ONE_TRANSACTION], DDL)
            return len(part)

        jobs = [(name, number) for name in self.servers for number in range(CONNECTIONS)]
        with ThreadPoolExecutor(len(jobs)) as pool:
            return sum(pool.map(work, jobs))

    def per_schema(self, most: int) -> int:
        """``alembic.command.upgrade`` for each schema, on a connection that stays open."""
        return self._alembic(most, self._upgrade)

    def one_env(self, most: int) -> int:
        """One script directory, loaded once; a context for each schema."""
        script = ScriptDirectory.from_config(self._config())
        script.get_heads()

        def upgrade(config: Config, _schema: str) -> None:
            def steps(version: Any, _context: Any) -> list[Any]:
                return list(script._upgrade_revs("head", version))

            with EnvironmentContext(config, script, fn=steps):
                script.run_env()

        return self._alembic(most, upgrade)

    @staticmethod
    def _upgrade(config: Config, _schema: str) -> None:
        command.upgrade(config, "head")

    def _config(self) -> Config:
        config = Config()
        config.set_main_option("script_location", str(self.usual))
        config.set_main_option("path_separator", "os")
        return config

    def _alembic(self, most: int, upgrade: Callable[[Config, str], None]) -> int:
        done = 0
        for name in self.servers:
            with _engine_connection(self.servers[name]) as connection:
                for schema in self.schemas[name][: most // len(self.servers)]:
                    config = self._config()
                    config.attributes |= {"connection": connection, "schema": schema}
                    upgrade(config, schema)
                    connection.commit()
                    done += 1
        return done


def run(bench: Bench) -> None:
    """256 shards; in the full form 1,024 as well, and once 4,096 on four servers."""
    bench.params |= {"revisions": REVISIONS, "rows": ROWS, "connections_per_server": CONNECTIONS, "servers": 2}
    with run_local(servers=2, redis=False, trust=True) as cluster:
        for shards in bench.pick([256, 1024], [256]):
            with fresh_databases(cluster.servers, 2) as databases, tempfile.TemporaryDirectory() as home:
                settings = Settings(catalog_url=Secret(databases.catalog_url))
                place = Place(settings, databases.servers, Path(home), shards=shards)
                _measure(bench, place, shards=shards)
    if not bench.quick:
        _large(bench, shards=4096, servers=4)


def _large(bench: Bench, *, shards: int, servers: int) -> None:
    """One run of a large fleet; too large to be repeated."""
    with (
        run_local(servers=servers, redis=False, trust=True) as cluster,
        fresh_databases(cluster.servers, servers) as databases,
        tempfile.TemporaryDirectory() as home,
    ):
        place = Place(Settings(catalog_url=Secret(databases.catalog_url)), databases.servers, Path(home), shards=shards)
        began = perf_counter()
        done = place.fleet()
        bench.record(f"fleet_s_{shards}", [perf_counter() - began], unit="s", goal=60.0)
        _same_everywhere(place, done, shards)


def _measure(bench: Bench, place: Place, *, shards: int) -> None:
    sample = {"per_schema": bench.pick(min(shards, 256), 48), "one_env": bench.pick(min(shards, 256), 96)}
    variants: dict[str, Callable[[], int]] = {
        "ours": place.fleet,
        "bare": place.bare,
        "per_schema": lambda: place.per_schema(sample["per_schema"]),
        "one_env": lambda: place.one_env(sample["one_env"]),
    }
    bench.params[f"alembic_samples_{shards}"] = sample
    taken: dict[str, list[list[float]]] = {name: [] for name in variants}
    order = random.Random(bench.seed)
    task = bench.progress.add_task(f"{shards} shards", total=(rounds := bench.pick(9, 5)) * len(variants))
    place.fleet()
    for _ in range(rounds):
        for name in order.sample(list(variants), len(variants)):
            place.reset()
            began = perf_counter()
            done = variants[name]()
            taken[name].append([(perf_counter() - began) / done])
            if name == "ours":
                _same_everywhere(place, done, shards)
            bench.progress.advance(task)
    mark = "" if shards == 256 else f"_{shards}"
    for peer, goal in (("alembic_per_schema", 30), ("one_env", 12)):
        other = taken["per_schema" if peer == "alembic_per_schema" else peer]
        bench.ratio(f"vs_{peer}_faster{mark}", ours=taken["ours"], other=other, goal=goal, better="higher")
    bench.ratio(f"vs_bare_ddl{mark}", ours=taken["ours"], other=taken["bare"], goal=1.5)
    bench.record(f"fleet_s{mark}", [block[0] * shards for block in taken["ours"]], unit="s")


def _same_everywhere(place: Place, done: int, shards: int) -> None:
    """A fast run that left something out would be no figure."""
    drifts, looked = check_fleet(place.settings, place.ours)
    if drifts or not done == looked == shards:
        raise AssertionError(f"{done} of {shards} shards migrated, {len(drifts)} differ")


def _in_schemas(connection: psycopg.Connection, schemas: list[str], script: str) -> None:
    paths = [sql.SQL("SET LOCAL search_path TO {}").format(sql.Identifier(s)).as_bytes(connection) for s in schemas]
    parts = [part for path in paths for part in (path, script.encode())]
    connection.execute(_as_one(parts))


def _as_one(parts: list[bytes]) -> bytes:
    """One message, one transaction."""
    return b"; ".join([b"BEGIN", *parts, b"COMMIT"])


def _ahead(connection: psycopg.Connection, schema: str) -> bool:
    """Whether the last revision's column is there: the bare DDL moves no version row."""
    found = "SELECT FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attname = 'extra' AND NOT attisdropped"
    return connection.execute(found, (f"{schema}.orders",)).fetchone() is not None


@contextmanager
def _engine_connection(url: str) -> Iterator[Connection]:
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"))
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


def _tree(directory: Path, env: str) -> Path:
    versions = directory / "versions"
    versions.mkdir(parents=True)
    (directory / "env.py").write_text(env)
    for number in range(1, REVISIONS + 1):
        up = FIRST if number == 1 else LAST if number == REVISIONS else "pass"
        down = _name(number - 1) if number > 1 else None
        (versions / f"{_name(number)}.py").write_text(REVISION.format(name=_name(number), down=down, up=up))
    # As after a tree's first use: where PYTHONDONTWRITEBYTECODE is set, Alembic would compile 32 files for each schema.
    compileall.compile_dir(directory, quiet=1)
    return directory


def _name(number: int) -> str:
    return f"{number:04d}"
