"""A small cluster whose one shard is moved to and fro under load."""

from __future__ import annotations

import itertools

from sqlalchemy import text

from shardkit.move import run
from shardkit.move.options import MoveOptions
from tests.faults import lab
from tests.faults.lab import ACCOUNTS, BALANCE, TENANT, transfer


class Lab(lab.Lab):
    """``move()`` carries the tenant's shard to the other server; the checks read the servers themselves."""

    BLUEPRINT = """
CREATE TABLE accounts (id int PRIMARY KEY, balance int NOT NULL CHECK (balance >= 0));
CREATE TABLE entries (id bigint DEFAULT next_id() PRIMARY KEY, writer int NOT NULL, n int NOT NULL, home uuid NOT NULL,
                      UNIQUE (writer, n));
CREATE TABLE tokens (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, what text NOT NULL)
"""

    def fill(self):
        with self.kit.begin(TENANT) as session:
            session.execute(
                text("INSERT INTO accounts SELECT n, :b FROM generate_series(1, :count) n"), {"b": BALANCE, "count": ACCOUNTS}
            )
            session.execute(text("INSERT INTO tokens (what) SELECT 'x' FROM generate_series(1, 50)"))

    @property
    def place(self):
        return self.kit.refresh().placement(0)

    @property
    def other(self):
        return next(name for name in self.servers if name != self.place.server)

    def begin(self, **options):
        return run.begin(self.settings, 0, self.other, options=MoveOptions(**options) if options else None)

    def move(self, **more):
        return self.go_on(self.begin(soak=False), **more)

    def entries(self, _tenant=TENANT):
        return self.rows("SELECT writer, n, id FROM entries")

    def wrong_rows(self, _live):
        found, epoch = [], self.place.epoch
        homes = [home for (home,) in self.rows("SELECT home FROM entries ORDER BY id")]
        if (switches := sum(a != b for a, b in itertools.pairwise(homes))) > epoch - 1:
            found.append(f"two servers took writes in turn: {switches} changes of server in {epoch - 1} moves")
        if (total := self.rows("SELECT sum(balance) FROM accounts")[0][0]) != ACCOUNTS * BALANCE:
            found.append(f"the accounts hold {total}")
        return found

    @staticmethod
    def unit(session, writer, n):
        session.execute(
            text("INSERT INTO entries (writer, n, home) SELECT :writer, :n, server_id FROM shardkit.identity"),
            {"writer": writer, "n": n},
        )
        session.execute(text("INSERT INTO tokens (what) VALUES ('w')"))
        transfer(session, writer, n)
