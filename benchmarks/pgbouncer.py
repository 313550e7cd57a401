"""PgBouncer in transaction mode in front of one local server, for what is measured through it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Final

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from shardkit.local.ports import HOST, free_ports

PROGRAM: Final = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
LOGIN: Final = "shardkit_bench_web"  # neither a superuser nor the owner: behind a pooler such a login is refused
_START_S: Final = 20.0
_INI: Final = """\
[databases]
* = host={host} port={port}
[pgbouncer]
listen_addr = {listen}
listen_port = {listen_port}
unix_socket_dir =
auth_type = trust
auth_file = {users}
pool_mode = transaction
default_pool_size = {size}
ignore_startup_parameters = extra_float_digits
"""


@contextmanager
def pgbouncer(url: str, *, size: int = 5) -> Iterator[Callable[[str | None], str]]:
    """Addresses of the database *url* through a PgBouncer with *size* connections to it, by login (None: that of *url*)."""
    assert PROGRAM is not None
    target = conninfo_to_dict(url)
    _make_login(url)
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory(prefix="shardkit-bench-") as home:
        users, ini = Path(home, "users.txt"), Path(home, "pgbouncer.ini")
        users.write_text("".join(f'"{name}" ""\n' for name in (LOGIN, target["user"])), "utf-8")
        ini.write_text(
            _INI.format(host=target["host"], port=target["port"], listen=HOST, listen_port=port, users=users, size=size),
            "utf-8",
        )
        Path(home).chmod(0o755)
        as_user = ["-u", "nobody"] if os.geteuid() == 0 else []  # it refuses to run as root
        running = subprocess.Popen([PROGRAM, *as_user, str(ini)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:

            def at(login: str | None) -> str:
                return f"postgresql://{login or target['user']}@{HOST}:{port}/{target['dbname']}"

            _wait_until_it_answers(at(None), running)
            yield at
        finally:
            running.terminate()
            running.wait(10)


def _make_login(url: str) -> None:
    login = sql.Identifier(LOGIN)
    with psycopg.connect(url, autocommit=True) as connection:
        if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (LOGIN,)).fetchone():
            connection.execute(sql.SQL("CREATE ROLE {} LOGIN NOSUPERUSER").format(login))
        connection.execute(sql.SQL("GRANT shardkit_app, shardkit_operator TO {}").format(login))


def _wait_until_it_answers(url: str, running: subprocess.Popen[bytes]) -> None:
    give_up = monotonic() + _START_S
    while True:
        try:
            psycopg.connect(url, connect_timeout=2, autocommit=True).close()
        except psycopg.OperationalError as exc:
            if running.poll() is not None or monotonic() > give_up:
                raise TimeoutError("PgBouncer does not answer") from exc
            sleep(0.05)
        else:
            return
