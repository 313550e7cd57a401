"""Where local clusters are tried: an empty directory, and who still runs in it."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path

import psycopg

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
