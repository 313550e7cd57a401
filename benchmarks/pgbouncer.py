"""PgBouncer in transaction mode in front of one local server, for what is measured or tried through it."""

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
_START_S: Final = 60.0


@contextmanager
def pgbouncer(url: str, *, login: str = LOGIN, **settings: int | str) -> Iterator[Callable[[str | None], str]]:
    """Addresses of the database *url* through a PgBouncer with *settings*, by login: *login*, or None for that of *url*."""
    assert PROGRAM is not None
    target = conninfo_to_dict(url)
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory(prefix="shardkit-pgbouncer-") as home:
        users, ini, log = Path(home, "users.txt"), Path(home, "pgbouncer.ini"), Path(home, "log")
        users.write_text("".join(f'"{name}" ""\n' for name in (login, target["user"])), "utf-8")
        lines = {
            "listen_addr": HOST,
            "listen_port": port,
            "unix_socket_dir": "",
            "auth_type": "trust",
            "auth_file": users,
            "pool_mode": "transaction",
            "ignore_startup_parameters": "extra_float_digits",
            **settings,
        }
        ini.write_text(
            f"[databases]\n* = host={target['host']} port={target['port']}\n[pgbouncer]\n"
            + "".join(f"{name} = {value}\n" for name, value in lines.items()),
            "utf-8",
        )
        Path(home).chmod(0o755)
        as_user = ["-u", "nobody"] if os.geteuid() == 0 else []  # it refuses to run as root
        with log.open("wb") as out:
            running = subprocess.Popen([PROGRAM, *as_user, str(ini)], stdout=out, stderr=out)
        try:

            def at(login: str | None) -> str:
                return f"postgresql://{login or target['user']}@{HOST}:{port}/{target['dbname']}"

            _wait_until_it_answers(at(None), running, log)
            yield at
        finally:
            running.terminate()
            running.wait(60)


def make_login(url: str) -> None:
    """Let LOGIN act as programs and operators do in the database *url*."""
    login = sql.Identifier(LOGIN)
    with psycopg.connect(url, autocommit=True) as connection:
        if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (LOGIN,)).fetchone():
            connection.execute(sql.SQL("CREATE ROLE {} LOGIN NOSUPERUSER").format(login))
        connection.execute(sql.SQL("GRANT shardkit_app, shardkit_operator TO {}").format(login))


def _wait_until_it_answers(url: str, running: subprocess.Popen[bytes], log: Path) -> None:
    give_up = monotonic() + _START_S
    while True:
        try:
            psycopg.connect(url, connect_timeout=2, autocommit=True).close()
        except psycopg.OperationalError as exc:
            if running.poll() is not None or monotonic() > give_up:
                raise TimeoutError(f"PgBouncer does not answer: {log.read_text('utf-8')}") from exc
            sleep(0.05)
        else:
            return
