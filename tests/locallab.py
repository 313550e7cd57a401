"""Where local clusters are tried: an empty directory, and who still runs in it."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
import time
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.pq import TransactionStatus

from shardkit.local.control import Control


@contextlib.contextmanager
def empty_place(cluster=".shardkit/local"):
    """An empty directory; a *cluster* made below it ends with it. Memory is much quicker than the disk."""
    path = Path(tempfile.mkdtemp(prefix="sk-test-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    yield path
    Control(path / cluster).down()
    shutil.rmtree(path)


def exists(pid):
    """Whether *pid* is a process; one that ended and was not collected yet is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def one(url, query="SELECT 1", *arguments):
    """The one value that the server at *url* answers with."""
    with psycopg.connect(url, autocommit=True, connect_timeout=60) as connection:
        cursor = connection.execute(query, arguments)
        return cursor.fetchone()[0] if cursor.description else None


@contextlib.contextmanager
def at_work(connection):
    """*connection* has a statement under way, until it is cancelled or the block ends."""

    def work():
        with contextlib.suppress(psycopg.errors.QueryCanceled):
            connection.execute("SELECT pg_sleep(280)")

    worker, give_up = threading.Thread(target=work, daemon=True), time.monotonic() + 60
    worker.start()
    while connection.info.transaction_status is not TransactionStatus.ACTIVE:  # or there would be nothing to cancel yet
        assert time.monotonic() < give_up
    try:
        yield
    finally:
        connection.cancel_safe()
        worker.join(120)


def drop_subscriptions(urls):
    """Those of each database: the slot they have elsewhere would keep that database."""
    for url in urls:
        with psycopg.connect(url, autocommit=True) as connection:
            query = (
                "SELECT subname FROM pg_subscription JOIN pg_database d ON d.oid = subdbid WHERE datname = current_database()"
            )
            for (name,) in connection.execute(query).fetchall():
                connection.execute(sql.SQL("DROP SUBSCRIPTION {}").format(sql.Identifier(name)))
