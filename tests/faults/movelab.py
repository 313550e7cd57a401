"""A small cluster whose one shard is moved to and fro under load, and the checkers that say whether anything went wrong."""

from __future__ import annotations

import itertools
import threading
import time
from dataclasses import dataclass, field

import psycopg
from sqlalchemy import text

from shardkit import Settings, ShardKit
from shardkit.catalog import journal
from shardkit.core.names import schema_name
from shardkit.db.connect import connect_admin
from shardkit.move import run
from shardkit.move.options import MoveOptions
from shardkit.schema.blueprint import Blueprint
from shardkit.schema.bootstrap import initialize

ACCOUNTS, BALANCE = 8, 100
BLUEPRINT = """
CREATE TABLE accounts (id int PRIMARY KEY, balance int NOT NULL CHECK (balance >= 0));
CREATE TABLE entries (id bigint DEFAULT next_id() PRIMARY KEY, writer int NOT NULL, n int NOT NULL, home uuid NOT NULL,
                      UNIQUE (writer, n));
CREATE TABLE tokens (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, what text NOT NULL)
"""
QUICK = MoveOptions(give_up_after_s=60, slot_timeout_s=30)
TENANT = "acme"


class Lab:
    """``move()`` carries the tenant's shard to the other server; the checks read the servers themselves."""

    def __init__(self, databases):
        self.settings = Settings(catalog_url=databases.catalog_url, move_wait_s=30.0)
        self.servers = databases.servers
        initialize(self.settings, servers=databases.servers, shard_count=1, blueprint=Blueprint(BLUEPRINT))
        self.kit = ShardKit(settings=self.settings)
        self.shard = 0
        with self.kit.begin(TENANT) as session:
            session.execute(
                text("INSERT INTO accounts SELECT n, :b FROM generate_series(1, :count) n"), {"b": BALANCE, "count": ACCOUNTS}
            )
            session.execute(text("INSERT INTO tokens (what) SELECT 'x' FROM generate_series(1, 50)"))

    def close(self):
        self.kit.close()

    def on(self, server):
        return psycopg.connect(self.servers[server], autocommit=True)

    @property
    def place(self):
        return self.kit.refresh().placement(self.shard)

    @property
    def other(self):
        return next(name for name in self.servers if name != self.place.server)

    def begin(self, **options):
        return run.begin(self.settings, self.shard, self.other, options=MoveOptions(**options) if options else None)

    def begin_rollback(self, move):
        return run.begin_rollback(self.settings, move.id)

    def go_on(self, move, action="resume", **more):
        return run.go_on(self.settings, move.id, action, **{"options": QUICK, **more})

    def move(self, **more):
        return self.go_on(self.begin(soak=False), **more)

    def find(self, move):
        with connect_admin(self.settings.catalog_url, self.settings) as catalog:
            return journal.find(catalog, move.id)

    def rows(self, query):
        place = self.place
        with self.on(place.server) as connection:
            connection.execute(f"SET search_path TO {schema_name(self.shard, place.epoch)}")
            return connection.execute(query).fetchall()

    def complaints(self, load=None):
        """What is wrong, as sentences: lost, doubled, left behind, open twice."""
        place, found = self.place, []
        live = schema_name(self.shard, place.epoch)
        for name in self.servers:
            with self.on(name) as connection:
                schemas = {s for (s,) in connection.execute("SELECT nspname FROM pg_namespace WHERE nspname ~ '^s[0-9]{4}_e'")}
                if schemas != ({live} if name == place.server else set()):
                    found.append(f"{name} has schemas {sorted(schemas)}, the live one is {live} on {place.server}")
                left = connection.execute(
                    "SELECT slot_name FROM pg_replication_slots WHERE database = current_database() UNION ALL SELECT "
                    "pubname FROM "
                    "pg_publication UNION ALL SELECT subname FROM pg_subscription s JOIN pg_database d ON d.oid = "
                    "s.subdbid WHERE "
                    "d.datname = current_database() UNION ALL SELECT gid FROM pg_prepared_xacts WHERE database = "
                    "current_database()"
                ).fetchall()
                marks = connection.execute("SELECT to_regclass('shardkit.move_marks')").fetchone()[0]
                if marks and connection.execute("SELECT count(*) FROM shardkit.move_marks").fetchone()[0]:
                    left.append("marks")
                if left:
                    found.append(f"left behind on {name}: {left}")
        homes = [home for (home,) in self.rows("SELECT home FROM entries ORDER BY id")]
        if (switches := sum(a != b for a, b in itertools.pairwise(homes))) > place.epoch - 1:
            found.append(f"two servers took writes in turn: {switches} changes of server in {place.epoch - 1} moves")
        if (total := self.rows("SELECT sum(balance) FROM accounts")[0][0]) != ACCOUNTS * BALANCE:
            found.append(f"the accounts hold {total}")
        if load is not None:
            found += load.complaints(self.rows("SELECT writer, n, id FROM entries"))
        return found


@dataclass
class Load:
    """Writers that append and transfer through ``kit.run``, and remember what was acknowledged."""

    lab: Lab
    writers: int = 2
    acked: list = field(default_factory=list)
    errors: list = field(default_factory=list)

    def __enter__(self):
        self._stop = threading.Event()
        self.base = max((n for _, n, _ in self.lab.rows("SELECT writer, n, id FROM entries")), default=0)
        self._threads = [threading.Thread(target=self._write, args=(writer,), daemon=True) for writer in range(self.writers)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=60)
            assert not thread.is_alive(), "a writer hangs"

    def wait_for(self, more):
        wanted, deadline = len(self.acked) + more, time.monotonic() + 60
        while len(self.acked) < wanted:
            assert time.monotonic() < deadline, f"writers are stuck: {self.errors[-1:]}"
            self._stop.wait(0.005)

    def _write(self, writer):
        n = self.base
        while not self._stop.is_set():
            n += 1
            try:
                self.lab.kit.run(TENANT, unit, writer, n)
                self.acked.append((writer, n))
                if n % 5 == 0 and (total := self.lab.kit.run(TENANT, balance)) != ACCOUNTS * BALANCE:
                    raise AssertionError(f"a reader saw {total} in the accounts")
            except Exception as exc:
                self.errors.append(exc)
            self._stop.wait(0.002)

    def complaints(self, rows):
        present = {(writer, n) for writer, n, _ in rows}
        found = [f"acknowledged but not there: {sorted(set(self.acked) - present)[:5]}"] if set(self.acked) - present else []
        if len(present) != len(rows) or len({key for *_, key in rows}) != len(rows):
            found.append("something is there twice")
        if self.errors:
            found.append(f"{len(self.errors)} errors through kit.run, the first: {self.errors[0]!r}")
        return found


def balance(session):
    return session.execute(text("SELECT sum(balance) FROM accounts")).scalar()


def unit(session, writer, n):
    session.execute(
        text("INSERT INTO entries (writer, n, home) SELECT :writer, :n, server_id FROM shardkit.identity"),
        {"writer": writer, "n": n},
    )
    session.execute(text("INSERT INTO tokens (what) VALUES ('w')"))
    take, give = 1 + n % ACCOUNTS, 1 + (n + 1 + writer) % ACCOUNTS
    if session.execute(text("UPDATE accounts SET balance = balance - 1 WHERE id = :a AND balance > 0"), {"a": take}).rowcount:
        session.execute(text("UPDATE accounts SET balance = balance + 1 WHERE id = :a"), {"a": give})
