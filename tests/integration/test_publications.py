"""Writers go on while the publications of their tables come and go."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from psycopg import sql

from shardkit.db.publications import drop_publication
from shardkit.local.databases import fresh_databases

WRITERS, TABLES, ROUNDS = 6, 3, 150


@pytest.fixture
def url(local_cluster):
    with fresh_databases(local_cluster.servers, 1) as databases:
        yield databases.servers["pg1"]


@pytest.fixture
def admin(url):
    with psycopg.connect(url, autocommit=True) as connection:
        for table in range(TABLES):
            connection.execute(f"CREATE TABLE t{table} (id int PRIMARY KEY, n int)")
            connection.execute(f"INSERT INTO t{table} SELECT n, 0 FROM generate_series(1, {WRITERS}) n")
        yield connection


def test_no_writer_meets_a_publication_that_is_being_dropped(url, admin):
    enough = threading.Event()

    def write(writer):
        with psycopg.connect(url, autocommit=True) as connection:
            done = 0
            while not enough.is_set():
                connection.execute(f"UPDATE t{done % TABLES} SET n = n + 1 WHERE id = {writer + 1}")
                done += 1
        return done

    names = sql.SQL(", ").join(sql.Identifier(f"t{table}") for table in range(TABLES))
    with ThreadPoolExecutor(WRITERS) as pool:
        writers = [pool.submit(write, writer) for writer in range(WRITERS)]
        try:
            for _ in range(ROUNDS):
                admin.execute(sql.SQL("CREATE PUBLICATION comes FOR TABLE {}").format(names))
                drop_publication(admin, "comes")
        finally:
            enough.set()
        assert min(writer.result() for writer in writers) > 0


def test_who_stays_in_his_transaction_is_not_waited_for(url, admin):
    admin.execute("CREATE PUBLICATION comes FOR TABLE t0")
    with psycopg.connect(url) as connection:
        connection.execute("UPDATE t0 SET n = 1")
        drop_publication(admin, "comes")
        assert admin.execute("SELECT count(*) FROM pg_publication").fetchone() == (0,)
        connection.execute("UPDATE t0 SET n = 2")


def test_what_is_not_there_is_fine_and_without_tables_too(admin):
    drop_publication(admin, "comes")
    admin.execute("CREATE PUBLICATION comes")
    drop_publication(admin, "comes")
    assert admin.execute("SELECT count(*) FROM pg_publication").fetchone() == (0,)
