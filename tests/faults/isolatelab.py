"""A cluster with one shard of two tenants, one of which is carried out under load."""

from __future__ import annotations

from sqlalchemy import text

from shardkit.core.names import schema_name
from shardkit.move.isolate import begin_isolate
from shardkit.move.options import MoveOptions
from tests.faults import lab
from tests.faults.lab import ACCOUNTS, BALANCE, TENANT, payer, transfer

NEIGHBOUR = "beta"
BOTH = (TENANT, NEIGHBOUR)
TABLES = ("accounts", "entries", "tokens")


class Lab(lab.Lab):
    """``begin()`` plans to carry TENANT to a shard of its own; the checks read the servers themselves."""

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

    def fill(self):
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

    @property
    def other(self):
        return next(name for name in self.servers if name != self.home.server)

    def begin(self, target=None, **options):
        return begin_isolate(
            self.settings, TENANT, target or self.other, whole=options.pop("whole", ()), options=MoveOptions(**options)
        )

    def entries(self, tenant):
        return self.rows("SELECT writer, n, id FROM entries WHERE tenant_id = %s", tenant)

    def wrong_rows(self, live):
        found = []
        for tenant in BOTH:
            total = self.rows("SELECT sum(balance) FROM accounts WHERE tenant_id = %s", tenant)[0][0]
            if total != ACCOUNTS * BALANCE:
                found.append(f"the accounts of {tenant} hold {total}")
        for server, schema in live:
            with self.on(server) as connection:
                connection.execute(f"SET search_path TO {schema}; SET ROLE shardkit_operator")
                for table in TABLES:
                    for (tenant,) in connection.execute(f"SELECT DISTINCT tenant_id FROM {table}").fetchall():
                        if (lives_in := self.route(tenant).schema) != schema:
                            found.append(f"{table} of {schema} shows rows of {tenant}, who lives in {lives_in}")
        return found

    def left(self, name, connection):
        left, shardmap = super().left(name, connection), self.kit.map
        here = [(shard, place.epoch) for shard, place in shardmap.placements.items() if place.server == name]
        for shard, epoch in here:
            for table in TABLES:
                query = f"SELECT DISTINCT tenant_id FROM {schema_name(shard, epoch)}.{table}"
                left += [(shard, tenant) for (tenant,) in connection.execute(query) if shardmap.shard_of(tenant) != shard]
        return left

    @staticmethod
    def unit(session, writer, n):
        session.execute(
            text(
                "INSERT INTO entries (tenant_id, writer, n, home, account) "
                "SELECT current_setting('shardkit.tenant'), :writer, :n, server_id, :account FROM shardkit.identity"
            ),
            {"writer": writer, "n": n, "account": payer(n)},
        )
        session.execute(text("INSERT INTO tokens (tenant_id, what) VALUES (current_setting('shardkit.tenant'), 'w')"))
        if n % 7 == 0:
            session.execute(text("DELETE FROM tokens WHERE id = (SELECT min(id) FROM tokens WHERE what = 'w')"))
        transfer(session, writer, n)
