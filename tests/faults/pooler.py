"""A real PgBouncer in transaction mode in front of one server, for tests."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from shardkit.local.ports import HOST, free_ports

LOGIN = "shardkit_test_web"
PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
needs_pgbouncer = pytest.mark.skipif(PROGRAM is None, reason="PgBouncer is not installed (Debian's package pgbouncer)")

INI = """\
[databases]
* = host={host} port={port}
[pgbouncer]
listen_addr = {listen}
listen_port = {listen_port}
unix_socket_dir =
auth_type = trust
auth_file = {users}
pool_mode = transaction
default_pool_size = 1
max_db_connections = 1
max_client_conn = 200
ignore_startup_parameters = {ignored}
"""


@contextlib.contextmanager
def pgbouncer(url, *, ignored="extra_float_digits"):
    """Addresses through a PgBouncer with *one* connection to the database of *url*: ``at(login)``."""
    target = conninfo_to_dict(url)
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory() as home:
        users, ini = Path(home, "users.txt"), Path(home, "pgbouncer.ini")
        users.write_text("".join(f'"{name}" ""\n' for name in (LOGIN, target["user"])))
        ini.write_text(
            INI.format(host=target["host"], port=target["port"], listen=HOST, listen_port=port, users=users, ignored=ignored)
        )
        Path(home).chmod(0o755)
        as_user = ["-u", "nobody"] if os.geteuid() == 0 else []  # it refuses to run as root
        log = Path(home, "log")
        with log.open("wb") as out:
            running = subprocess.Popen([PROGRAM, *as_user, str(ini)], stdout=out, stderr=out)
        try:

            def at(login=LOGIN):
                return f"postgresql://{login}@{HOST}:{port}/{target['dbname']}"

            _wait_until_it_answers(at(target["user"]), running, log)
            yield at
        finally:
            running.terminate()
            running.wait(10)


def _wait_until_it_answers(url, running, log):
    deadline = time.monotonic() + 20
    while True:
        try:
            psycopg.connect(url, connect_timeout=2, autocommit=True).close()
        except psycopg.OperationalError:
            if running.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"PgBouncer does not answer: {log.read_text()}")
        else:
            return
