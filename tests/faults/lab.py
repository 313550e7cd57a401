"""A small cluster of one shard that movers work on under load, and the checkers that say whether anything went wrong."""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass, field

import psycopg
from sqlalchemy import text

from shardkit import Settings, ShardKit
from shardkit.catalog import journal
from shardkit.core.names import schema_name
from shardkit.db.connect import connect_admin
from shardkit.errors import ShardKitError
from shardkit.local.databases import fresh_databases
from shardkit.move import run
from shardkit.move.options import MoveOptions
from shardkit.schema.blueprint import Blueprint
from shardkit.schema.bootstrap import initialize

ACCOUNTS, BALANCE = 8, 100
QUICK = MoveOptions(give_up_after_s=200, slot_timeout_s=100)  # soon over, but not because the machine stalled
TENANT = "acme"
LEFT = """
SELECT slot_name FROM pg_replication_slots WHERE database = current_database()
UNION ALL SELECT pubname FROM pg_publication
UNION ALL SELECT subname FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid WHERE d.datname = current_database()
UNION ALL SELECT gid FROM pg_prepared_xacts WHERE database = current_database()
UNION ALL SELECT polname FROM pg_policy WHERE polname LIKE 'shardkit_curtain%'
"""


class Lab:
    """What a move and an isolate are tried on. A kind of lab has ``BLUEPRINT``, ``fill()``, ``begin(**options)``,
    ``unit(session, writer, n)``, which writers do, and ``entries(tenant)``, what the servers themselves have of it."""

    def __init__(self, databases):
        self.settings = Settings(catalog_url=databases.catalog_url, move_wait_s=60.0, load_interval_s=3600.0)
        self.servers = databases.servers
        initialize(self.settings, servers=databases.servers, shard_count=1, blueprint=Blueprint(self.BLUEPRINT))
        self.kit = ShardKit(settings=self.settings)
        self.fill()

    @classmethod
    @contextlib.contextmanager
    def on_cluster(cls, cluster):
        with fresh_databases(cluster.servers, 2) as databases:
            with contextlib.closing(cls(databases)) as lab:
                yield lab

    def close(self):
        self.kit.close()

    def on(self, server):
        return psycopg.connect(self.servers[server], autocommit=True)

    def route(self, tenant=TENANT):
        self.kit.refresh()
        return self.kit.locate(tenant)

    def rows(self, query, tenant=TENANT):
        """What the server itself has, policies or not. ``%s`` stands for *tenant*."""
        route = self.route(tenant)
        with self.on(route.server) as connection:
            connection.execute(f"SET search_path TO {route.schema}")
            return connection.execute(query, (tenant,) if "%s" in query else None).fetchall()

    def go_on(self, move, action="resume", **more):
        return run.go_on(self.settings, move.id, action, **{"options": QUICK, **more})

    def begin_rollback(self, move):
        return run.begin_rollback(self.settings, move.id)

    def go_back(self, move, **more):
        return self.go_on(self.begin_rollback(move), **more)

    def find(self, move):
        return self.find_id(move.id)

    def find_id(self, move_id):
        with connect_admin(self.settings.catalog_url, self.settings) as catalog:
            return journal.find(catalog, move_id)

    def end_moves(self):
        """Bring every open move to an end, one way or the other."""
        with connect_admin(self.settings.catalog_url, self.settings) as catalog:
            moves = journal.moves(catalog)
        for move in moves:
            for action in ("abort", "resume", "finish"):
                with contextlib.suppress(ShardKitError):
                    self.go_on(move, action, take_over=True)

    def complaints(self, *loads, soaking=False):
        """What is wrong, as sentences: lost, doubled, left behind, open twice, seen by the wrong session."""
        found, placements = [], self.kit.refresh().placements.items()
        live = {(place.server, schema_name(shard, place.epoch)) for shard, place in placements}
        for name in self.servers:
            with self.on(name) as connection:
                schemas = {s for (s,) in connection.execute("SELECT nspname FROM pg_namespace WHERE nspname ~ '^s[0-9]{4}_e'")}
                if schemas != {schema for server, schema in live if server == name}:
                    found.append(f"{name} has schemas {sorted(schemas)}, the map has {sorted(live)}")
                if not soaking and (left := self.left(name, connection)):
                    found.append(f"left behind on {name}: {left}")
        found += self.wrong_rows(live)
        for load in loads:
            found += load.complaints(self.entries(load.tenant))
        return found

    def left(self, _name, connection):
        """What no move needs any more on a server."""
        left = connection.execute(LEFT).fetchall()
        for table in ("move_marks", "curtains"):
            if connection.execute(f"SELECT to_regclass('shardkit.{table}') IS NOT NULL").fetchone()[0]:
                left += connection.execute(f"SELECT '{table}' FROM shardkit.{table} LIMIT 1").fetchall()
        return left


@dataclass
class Load:
    """Writers of one tenant that append and transfer through ``kit.run``, and remember what was acknowledged."""

    lab: Lab
    tenant: str = TENANT
    writers: int = 2
    acked: list = field(default_factory=list)
    errors: list = field(default_factory=list)

    def __enter__(self):
        self._stop = threading.Event()
        self.base = max((n for _, n, _ in self.lab.entries(self.tenant)), default=0)
        self._threads = [threading.Thread(target=self._write, args=(writer,), daemon=True) for writer in range(self.writers)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=200)
            assert not thread.is_alive(), "a writer hangs"

    def wait_for(self, more):
        wanted, deadline = len(self.acked) + more, time.monotonic() + 200
        while len(self.acked) < wanted:
            assert time.monotonic() < deadline, f"writers are stuck: {self.errors[-1:]}"
            self._stop.wait(0.005)

    def _write(self, writer):
        n = self.base
        while not self._stop.is_set():
            n += 1
            try:
                self.lab.kit.run(self.tenant, self.lab.unit, writer, n)
                self.acked.append((writer, n))
                if n % 5 == 0 and (total := self.lab.kit.run(self.tenant, balance)) != ACCOUNTS * BALANCE:
                    raise AssertionError(f"a reader of {self.tenant} saw {total} in the accounts")
            except Exception as exc:
                self.errors.append(exc)
            self._stop.wait(0.002)

    def complaints(self, rows):
        present = {(writer, n) for writer, n, _ in rows}
        missing = set(self.acked) - present
        found = [f"{self.tenant}: acknowledged but not there: {sorted(missing)[:5]}"] if missing else []
        if len(present) != len(rows) or len({key for *_, key in rows}) != len(rows):
            found.append(f"{self.tenant}: something is there twice")
        if self.errors:
            found.append(f"{self.tenant}: {len(self.errors)} errors through kit.run, the first: {self.errors[0]!r}")
        return found


def balance(session):
    return session.execute(text("SELECT sum(balance) FROM accounts")).scalar()


def transfer(session, writer, n):
    """One from the account that entry *n* of *writer* belongs to, to another."""
    take, give = payer(n), 1 + (n + 1 + writer) % ACCOUNTS
    if session.execute(text("UPDATE accounts SET balance = balance - 1 WHERE id = :a AND balance > 0"), {"a": take}).rowcount:
        session.execute(text("UPDATE accounts SET balance = balance + 1 WHERE id = :a"), {"a": give})


def payer(n):
    return 1 + n % ACCOUNTS
