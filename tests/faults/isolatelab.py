"""A cluster with one shard of two tenants, one of which is carried out under load; and what is wrong afterwards."""

from __future__ import annotations

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
from shardkit.move.isolate import begin_isolate
from shardkit.move.options import MoveOptions
from shardkit.schema.blueprint import Blueprint
from shardkit.schema.bootstrap import initialize

ACCOUNTS, BALANCE = 8, 100
BLUEPRINT = """
CREATE TABLE accounts (tenant_id text NOT NULL, id int NOT NULL, balance int NOT NULL CHECK (balance >= 0),
                       PRIMARY KEY (tenant_id, id));
CREATE TABLE entries (id bigint DEFAULT next_id() PRIMARY KEY, tenant_id text NOT NULL, writer int NOT NULL, n int NOT NULL,
                      home uuid NOT NULL, account int NOT NULL, UNIQUE (tenant_id, id), UNIQUE (tenant_id, writer, n),
                      FOREIGN KEY (tenant_id, account) REFERENCES accounts);
CREATE TABLE tokens (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, tenant_id text NOT NULL, what text NOT NULL);
CREATE INDEX ON tokens (tenant_id);
CREATE TABLE loose (id int PRIMARY KEY);
SELECT shardkit.protect('accounts'), shardkit.protect('entries'), shardkit.protect('tokens')
"""
QUICK = MoveOptions(give_up_after_s=60, slot_timeout_s=30)
TENANT, NEIGHBOUR = "acme", "beta"
BOTH = (TENANT, NEIGHBOUR)


class Lab:
    """``begin()`` plans to carry TENANT to a shard of its own; the checks read the servers themselves."""

    def __init__(self, databases):
        self.settings = Settings(catalog_url=databases.catalog_url, move_wait_s=30.0)
        self.servers = databases.servers
        initialize(self.settings, servers=databases.servers, shard_count=1, blueprint=Blueprint(BLUEPRINT))
        self.kit = ShardKit(settings=self.settings)
        for tenant in BOTH:
            with self.kit.begin(tenant) as session:
                session.execute(
                    text("INSERT INTO accounts SELECT :t, n, :b FROM generate_series(1, :count) n"),
                    {"t": tenant, "b": BALANCE, "count": ACCOUNTS},
                )
                session.execute(
                    text("INSERT INTO tokens (tenant_id, what) SELECT :t, 'x' FROM generate_series(1, 50)"), {"t": tenant}
                )
        self.home = self.kit.locate(NEIGHBOUR)

    def close(self):
        self.kit.close()

    def on(self, server):
        return psycopg.connect(self.servers[server], autocommit=True)

    @property
    def other(self):
        return next(name for name in self.servers if name != self.home.server)

    def route(self, tenant=TENANT):
        self.kit.refresh()
        return self.kit.locate(tenant)

    def begin(self, target=None, **options):
        return begin_isolate(
            self.settings, TENANT, target or self.other, whole=options.pop("whole", ()), options=MoveOptions(**options)
        )

    def go_on(self, move, action="resume", **more):
        return run.go_on(self.settings, move.id, action, **{"options": QUICK, **more})

    def go_back(self, move, **more):
        return self.go_on(run.begin_rollback(self.settings, move.id), **more)

    def find(self, move):
        with connect_admin(self.settings.catalog_url, self.settings) as catalog:
            return journal.find(catalog, move.id)

    def open_moves(self):
        with connect_admin(self.settings.catalog_url, self.settings) as catalog:
            return journal.moves(catalog)

    def rows(self, query, tenant=TENANT):
        """What the server itself has for *tenant*, policies or not."""
        route = self.route(tenant)
        with self.on(route.server) as connection:
            connection.execute(f"SET search_path TO {route.schema}")
            return connection.execute(query, (tenant,)).fetchall()

    def complaints(self, *loads, soaking=False):
        """What is wrong, as sentences: lost, doubled, left behind, seen by the wrong session."""
        found, shardmap = [], self.kit.refresh()
        live = {(p.server, schema_name(shard, p.epoch)) for shard, p in shardmap.placements.items()}
        for name in self.servers:
            with self.on(name) as connection:
                schemas = {s for (s,) in connection.execute("SELECT nspname FROM pg_namespace WHERE nspname ~ '^s[0-9]{4}_e'")}
                if schemas != {schema for server, schema in live if server == name}:
                    found.append(f"{name} has schemas {sorted(schemas)}, the map has {sorted(live)}")
                if not soaking:
                    found += self._left(name, connection)
        for tenant in BOTH:
            if (
                total := self.rows("SELECT sum(balance) FROM accounts WHERE tenant_id = %s", tenant)[0][0]
            ) != ACCOUNTS * BALANCE:
                found.append(f"the accounts of {tenant} hold {total}")
        for server, schema in live:
            with self.on(server) as connection:
                connection.execute(f"SET search_path TO {schema}; SET ROLE shardkit_operator")
                for table in ("accounts", "entries", "tokens"):
                    for (tenant,) in connection.execute(f"SELECT DISTINCT tenant_id FROM {table}").fetchall():
                        if self.route(tenant).schema != schema:
                            found.append(
                                f"{table} of {schema} shows rows of {tenant}, who lives in {self.route(tenant).schema}"
                            )
        for load in loads:
            found += load.complaints(self.rows("SELECT writer, n, id FROM entries WHERE tenant_id = %s", load.tenant))
        return found

    def _left(self, name, connection):
        left = connection.execute(
            "SELECT slot_name FROM pg_replication_slots WHERE database = current_database() UNION ALL SELECT pubname FROM "
            "pg_publication UNION ALL SELECT gid FROM pg_prepared_xacts WHERE database = current_database() UNION ALL "
            "SELECT polname FROM pg_policy WHERE polname LIKE 'shardkit_curtain%'"
        ).fetchall()
        for table in ("move_marks", "curtains"):
            if connection.execute(f"SELECT to_regclass('shardkit.{table}') IS NOT NULL").fetchone()[0]:
                left += connection.execute(f"SELECT '{table}' FROM shardkit.{table} LIMIT 1").fetchall()
        shardmap = self.kit.map
        for shard, place in shardmap.placements.items():
            if place.server == name:
                for table in ("accounts", "entries", "tokens"):
                    query = f"SELECT DISTINCT tenant_id FROM {schema_name(shard, place.epoch)}.{table}"
                    left += [(shard, t) for (t,) in connection.execute(query) if shardmap.shard_of(t) != shard]
        return [f"left behind on {name}: {left}"] if left else []


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
        query = "SELECT coalesce(max(n), 0) FROM entries WHERE tenant_id = %s"
        self.base = self.lab.rows(query, self.tenant)[0][0]
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
                self.lab.kit.run(self.tenant, unit, writer, n)
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


def unit(session, writer, n):
    take, give = 1 + n % ACCOUNTS, 1 + (n + 1 + writer) % ACCOUNTS
    session.execute(
        text(
            "INSERT INTO entries (tenant_id, writer, n, home, account) "
            "SELECT current_setting('shardkit.tenant'), :writer, :n, server_id, :account FROM shardkit.identity"
        ),
        {"writer": writer, "n": n, "account": take},
    )
    session.execute(text("INSERT INTO tokens (tenant_id, what) VALUES (current_setting('shardkit.tenant'), 'w')"))
    if n % 7 == 0:
        session.execute(text("DELETE FROM tokens WHERE id = (SELECT min(id) FROM tokens WHERE what = 'w')"))
    if session.execute(text("UPDATE accounts SET balance = balance - 1 WHERE id = :a AND balance > 0"), {"a": take}).rowcount:
        session.execute(text("UPDATE accounts SET balance = balance + 1 WHERE id = :a"), {"a": give})
