"""A small cluster and an Alembic tree that grows, for tests of migrations."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import psycopg
from psycopg import sql

from shardkit import Settings
from shardkit.catalog.rows import load_map
from shardkit.core.fleet import Options
from shardkit.core.names import schema_name
from shardkit.schema.bootstrap import initialize
from shardkit.schema.fleet import Fleet
from tests import patience

ROOT = Path(__file__).parents[2]
ENV = "from __future__ import annotations\nfrom shardkit.schema import run_env\nrun_env()\n"
REVISION = """from __future__ import annotations
import sqlalchemy as sa
from alembic import op
revision = {name!r}
down_revision = {down!r}
{mark}

def upgrade():
{up}

def downgrade():
{undo}
"""


class FleetLab:
    """``lab.revise("b", "op.…")`` adds a revision on top; ``lab.migrate()`` runs the fleet."""

    def __init__(self, databases, tree: Path, *, shards: int = 16, blueprint=None) -> None:
        self.databases, self.tree = databases, tree
        self.settings = Settings(catalog_url=databases.catalog_url)
        self.map = initialize(self.settings, servers=databases.servers, shard_count=shards, blueprint=blueprint)
        self.last: str | None = None
        (tree / "versions").mkdir(parents=True)
        (tree / "env.py").write_text(ENV)
        (tree / "script.py.mako").write_text((ROOT / "migrations" / "shard" / "script.py.mako").read_text())

    @classmethod
    def with_orders(cls, databases, tree: Path, **given) -> FleetLab:
        """One whose shards are at the first revision."""
        lab = cls(databases, tree, **given)
        lab.orders()
        lab.migrate()
        return lab

    def revise(self, name: str, up: str, *, undo: str = "pass", mark: str = "", down: str | None = ...) -> None:
        body = {
            key: "\n".join(f"    {line}" for line in text.strip("\n").splitlines())
            for key, text in {"up": up, "undo": undo}.items()
        }
        parent = self.last if down is ... else down
        (self.tree / "versions" / f"{name}.py").write_text(REVISION.format(name=name, down=parent, mark=mark, **body))
        self.last = name

    def orders(self) -> None:
        """The first revision every lab wants."""
        self.revise(
            "a",
            "op.create_table('orders', sa.Column('id', sa.BigInteger, primary_key=True), sa.Column('note', sa.Text))",
            undo="op.drop_table('orders')",
        )

    def flip(self) -> None:
        """Shard 0 goes to its next epoch, as at the end of a move."""
        with self.shard(0) as there:
            there.execute("ALTER SCHEMA s0000_e1 RENAME TO s0000_e2")
        with self.catalog() as catalog:
            catalog.execute("UPDATE shardkit_catalog.cluster SET map_version = 2")
            catalog.execute("UPDATE shardkit_catalog.placements SET epoch = 2, changed_in = 2 WHERE shard = 0")

    @property
    def fleet(self) -> Fleet:
        return Fleet(self.settings, self.tree)

    def migrate(self, target: str = "head", **given):
        options = {k: given.pop(k) for k in list(given) if k in Options.__dataclass_fields__}
        return self.fleet.migrate(target, options=Options(**options), **given)

    def catalog(self) -> psycopg.Connection:
        return psycopg.connect(self.databases.catalog_url, autocommit=True)

    def place(self, shard: int):
        with self.catalog() as connection:
            return load_map(connection).placement(shard)

    def shard(self, shard: int) -> psycopg.Connection:
        """A connection that stands in the shard's schema."""
        place = self.place(shard)
        connection = psycopg.connect(self.databases.servers[place.server], autocommit=True)
        connection.execute(sql.SQL("SET search_path TO {}").format(sql.Identifier(schema_name(shard, place.epoch))))
        return connection

    def ask(self, shard: int, query: str):
        with self.shard(shard) as connection:
            return connection.execute(query).fetchone()[0]

    def everywhere(self, query: str) -> set:
        """The answers of all shards."""
        answers = set()
        with self.catalog() as catalog:
            shard_map = load_map(catalog)
        for server, url in self.databases.servers.items():
            with psycopg.connect(url, autocommit=True) as connection:
                for shard in shard_map.shards_on(server):
                    schema = schema_name(shard, shard_map.placement(shard).epoch)
                    connection.execute(sql.SQL("SET search_path TO {}").format(sql.Identifier(schema)))
                    answers.add(connection.execute(query).fetchone()[0])
        return answers

    def ledger(self) -> dict[tuple[int, str], str]:
        with self.catalog() as connection:
            rows = connection.execute("SELECT shard, revision, state FROM shardkit_catalog.fleet_ledger").fetchall()
        return {(shard, revision): state for shard, revision, state in rows}

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-c", "from shardkit.cli import main; main()", "migrate", *arguments, "--tree", str(self.tree)]

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, **patience.VARIABLES, "SHARDKIT_CATALOG_URL": self.databases.catalog_url, "PYTHONPATH": str(ROOT)}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The command line, to its end."""
        return subprocess.run(
            self.command(*arguments),
            env=self.environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )

    @contextlib.contextmanager
    def started(self, *arguments: str):
        """The command line, running; killed at the end of the block if it still does."""
        process = subprocess.Popen(
            self.command(*arguments),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()
