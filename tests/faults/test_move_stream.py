"""Whoever follows a server's changes and then looks at its rows sees every commit: in the one or in the other."""

from __future__ import annotations

import contextlib
import threading

import psycopg
import pytest

from shardkit import Settings
from shardkit.local import run_local
from shardkit.move.ends import End
from shardkit.move.stream import ChangeStream
from shardkit.move.structure import tables_of

WAITING = "SELECT transactionid FROM pg_locks WHERE locktype = 'transactionid' AND NOT granted"


@pytest.fixture
def server():
    """One on which a commit waits for a standby that there is none of, if it asks for that."""
    with run_local(servers=1, redis=False, trust=True, fast=True) as cluster:
        url = cluster.servers[0].url_of("postgres")
        with psycopg.connect(url, autocommit=True) as admin:
            admin.execute("CREATE SCHEMA s CREATE TABLE t (id int PRIMARY KEY)")
            admin.execute("CREATE PUBLICATION p FOR TABLE s.t")
            admin.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
            admin.execute("SELECT pg_reload_conf()")
            yield url, admin


def test_a_commit_that_is_in_the_log_and_not_yet_to_be_seen_is_waited_for(server, eventually):
    """The slot begins behind it, and a query just then does not see it: with nobody waiting it would be in neither."""
    url, admin = server
    end = End("pg1", url, Settings(catalog_url=url), session="test of streams")
    table = next(table for table in tables_of(admin, "s") if table.name == "t")
    first, second, third = (psycopg.connect(url) for _ in range(3))
    seen = []

    def follow():
        stream = ChangeStream(end, slot="follower", publication="p", tables=[table], timeout_s=200)
        with contextlib.closing(stream), psycopg.connect(url) as reader:
            seen.append(reader.execute("SELECT count(*) FROM s.t").fetchone()[0])

    def commit():
        third.execute("INSERT INTO s.t VALUES (1)")
        third.execute("SET LOCAL synchronous_commit = on")
        third.commit()

    def xid(connection):
        return connection.execute("SELECT pg_current_xact_id()::xid").fetchone()[0]

    following, committing = threading.Thread(target=follow, daemon=True), threading.Thread(target=commit, daemon=True)
    with contextlib.ExitStack() as opened:
        for connection in (first, second, third):
            opened.enter_context(contextlib.closing(connection))
        admin.execute("SET synchronous_commit = local")
        one = xid(first)
        following.start()
        eventually(lambda: (one,) in admin.execute(WAITING).fetchall())
        two = xid(second)
        first.rollback()
        eventually(lambda: (two,) in admin.execute(WAITING).fetchall())
        committing.start()
        in_limbo = "SELECT wait_event FROM pg_stat_activity WHERE pid = %s"
        eventually(lambda: admin.execute(in_limbo, (third.info.backend_pid,)).fetchone() == ("SyncRep",))
        second.rollback()
        waits = "SELECT FROM pg_stat_activity WHERE application_name = 'test of streams' AND query LIKE '%pg_snapshot_xmin%'"
        eventually(lambda: seen or admin.execute(waits).fetchone() is not None)
        admin.execute("SELECT pg_cancel_backend(%s)", (third.info.backend_pid,))  # it ends its wait, and is to be seen
        following.join(200)
        committing.join(200)
    end.close()
    assert seen == [1]
