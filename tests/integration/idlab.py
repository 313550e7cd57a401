"""A laboratory for ids: a database of its own, a clock and a sleep that can be replaced.

The clock is replaced in the text of the function alone (``clock_timestamp()``, ``pg_sleep(``); the rest is what ships.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
from psycopg.conninfo import make_conninfo

from shardkit.core import names
from shardkit.db.shard_objects import server_objects, shard_objects

SHARD = 291
SCHEMA = names.schema_name(SHARD, 17)
START_US = 1_800_000_000_000_000  # where a virtual clock begins: 2027-01-15

# A clock is a sequence of microseconds that tests set; sequences are seen at once by every session.
_CLOCK = """
CREATE SEQUENCE shardkit.lab_us MINVALUE -9000000000000000;
CREATE SEQUENCE shardkit.lab_slept_us MINVALUE 0;
SELECT setval('shardkit.lab_slept_us', 0);
CREATE FUNCTION shardkit.lab_add(clock regclass, us bigint) RETURNS bigint LANGUAGE sql VOLATILE
RETURN setval(clock, pg_sequence_last_value(clock) + us);
CREATE FUNCTION shardkit.lab_offset() RETURNS timestamptz LANGUAGE sql VOLATILE
RETURN clock_timestamp() + make_interval(secs => pg_sequence_last_value('shardkit.lab_us') / 1e6);
CREATE FUNCTION shardkit.lab_virtual() RETURNS timestamptz LANGUAGE sql VOLATILE
RETURN to_timestamp(pg_sequence_last_value('shardkit.lab_us') / 1e6);
CREATE FUNCTION shardkit.lab_ticking() RETURNS timestamptz LANGUAGE sql VOLATILE
RETURN to_timestamp(shardkit.lab_add('shardkit.lab_us', 1000) / 1e6);
CREATE FUNCTION shardkit.lab_sleep(seconds float8) RETURNS bigint LANGUAGE sql VOLATILE RETURN CASE
    WHEN seconds > 0 THEN shardkit.lab_add('shardkit.lab_us', ceil(seconds * 1e6)::bigint)
    - shardkit.lab_add('shardkit.lab_slept_us', ceil(seconds * 1e6)::bigint) END;
"""

# Instagram's function as published in 2012, the planted violation.
INSTAGRAM = """
CREATE OR REPLACE FUNCTION s0291_e17.next_id() RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE seq_id bigint; now_millis bigint; result bigint;
BEGIN
    SELECT nextval('s0291_e17.shardkit_ids') % 1024 INTO seq_id;
    SELECT floor(extract(epoch FROM clock_timestamp()) * 1000) INTO now_millis;
    result := (now_millis - 1767225600000) << 23;
    result := result | (291 << 10);
    result := result | seq_id;
    RETURN result;
END $$
"""

_CLOCKS: dict[str, tuple[str, str]] = {
    "real": ("clock_timestamp()", "pg_sleep("),
    "offset": ("shardkit.lab_offset()", "pg_sleep("),
    "virtual": ("shardkit.lab_virtual()", "shardkit.lab_sleep("),
    "ticking": ("shardkit.lab_ticking()", "pg_sleep("),
}


@dataclass(frozen=True, slots=True)
class Lab:
    """A database with one shard in it."""

    url: str

    @contextmanager
    def connect(self) -> Iterator[psycopg.Connection]:
        with psycopg.connect(self.url, autocommit=True) as connection:
            yield connection

    def install(self, clock: str = "real", *, edit: Callable[[str], str] = lambda text: text) -> None:
        """Put the shipped function in place with its *clock* replaced; to plant a violation, *edit* its text."""
        schema, function = (part.as_string() for part in server_objects())
        now, sleep = _CLOCKS[clock]
        function = edit(function.replace("clock_timestamp()", now).replace("pg_sleep(", sleep))
        with self.connect() as connection:
            connection.execute(schema)
            connection.execute(function)

    def set_clock(self, us: int) -> None:
        with self.connect() as connection:
            connection.execute("SELECT setval('shardkit.lab_us', %s)", (us,))

    def slept_us(self) -> int:
        return self.scalar("SELECT pg_sequence_last_value('shardkit.lab_slept_us')")

    def scalar(self, query: str, *params: object) -> int:
        with self.connect() as connection:
            row = connection.execute(query, params).fetchone()
            assert row is not None
            return row[0]

    def advisory_locks(self) -> int:
        return self.scalar(
            "SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database"
            " WHERE locktype = 'advisory' AND datname = current_database() AND classid::bigint = %s",
            names.ID_LOCK_CLASS,
        )


@contextmanager
def laboratory(server_url: str) -> Iterator[Lab]:
    """A fresh database on the server, with shard 291 in it and the shipped function; dropped at the end."""
    name = f"ids_{secrets.token_hex(4)}"
    with psycopg.connect(server_url, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}")
    lab = Lab(make_conninfo(server_url, dbname=name))
    try:
        lab.install()
        with lab.connect() as connection:
            connection.execute(_CLOCK)
            connection.execute("SELECT setval('shardkit.lab_us', 0)")
            connection.execute(f"CREATE SCHEMA {SCHEMA}")
            connection.execute(shard_objects(SHARD, SCHEMA))
        yield lab
    finally:
        with psycopg.connect(server_url, autocommit=True) as server:
            server.execute(f"DROP DATABASE {name} WITH (FORCE)")
