"""A copy from server to server where the target refuses a row while megabytes are on their way to it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import psycopg
import pytest

from shardkit.local.databases import fresh_databases

ROWS, ROW_BYTES = 30_000, 1000
COPY = """
import json, sys
import psycopg
from psycopg import sql
from shardkit.move.copy import pipe
reader, writer = (psycopg.connect(url, autocommit=True) for url in sys.argv[1:3])
sent = 0
def copied(more):
    global sent
    sent += more
    if sent == more:
        print(json.dumps([c.info.backend_pid for c in (reader, writer)]), flush=True)
        sys.stdin.readline()
out = sql.SQL("COPY (SELECT n, repeat('x', {}) FROM generate_series(1, {}) n) TO STDOUT (FORMAT binary)")
try:
    pipe(reader, out.format(*map(int, sys.argv[3:])), writer, sql.SQL("COPY filled FROM STDIN (FORMAT binary)"), copied)
except psycopg.Error as exc:
    print(json.dumps([type(exc).__name__, sent, reader.closed, writer.closed]))
"""


@pytest.fixture
def databases(local_cluster):
    with fresh_databases(local_cluster.servers, 2) as databases:
        yield databases


def test_a_refused_row_ends_a_copy_that_is_far_ahead_of_the_target(databases, eventually):
    source, target = databases.servers.values()
    with psycopg.connect(target, autocommit=True) as connection, psycopg.connect(source, autocommit=True) as looking:
        connection.execute("CREATE TABLE filled (id int CHECK (id < 20000), filler text)")
        command = [sys.executable, "-c", COPY, source, target, str(ROW_BYTES), str(ROWS)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as copying:
            reader, writer = json.loads(copying.stdout.readline())
            os.kill(writer, signal.SIGSTOP)
            try:
                copying.stdin.write("\n")
                copying.stdin.flush()
                waits = "SELECT state <> 'active' OR wait_event = 'ClientWrite' FROM pg_stat_activity WHERE pid = %s"
                eventually(lambda: looking.execute(waits, (reader,)).fetchone() == (True,), within_s=60)
            finally:
                os.kill(writer, signal.SIGCONT)
            try:
                said, _ = copying.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                copying.kill()
                raise
    error, sent, *closed = json.loads(said)
    assert error == "CheckViolation"
    assert sent < ROWS * ROW_BYTES  # it did not send all the rest in vain
    assert closed == [True, True]
