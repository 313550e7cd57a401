"""PgBouncer with *one* connection to a database: whatever goes through it shares that one."""

from __future__ import annotations

import contextlib

import pytest

from benchmarks import pgbouncer as program

LOGIN = "shardkit_test_web"
needs_pgbouncer = pytest.mark.skipif(program.PROGRAM is None, reason="PgBouncer is not installed (Debian's package pgbouncer)")


@contextlib.contextmanager
def pgbouncer(url, *, ignored="extra_float_digits"):
    """Addresses through it to the database of *url*: ``at(login)``."""
    settings = {"default_pool_size": 1, "max_db_connections": 1, "max_client_conn": 200, "ignore_startup_parameters": ignored}
    with program.pgbouncer(url, login=LOGIN, **settings) as at:
        yield lambda login=LOGIN: at(login)
