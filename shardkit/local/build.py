"""Makes and starts the servers' data: one initdb, copied; then one postgres per copy, all at the same time."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from shardkit.errors import LocalClusterError
from shardkit.local import nobody
from shardkit.local.binaries import Postgres
from shardkit.local.control import Control
from shardkit.local.state import CATALOG_DATABASE, DATABASE, HOST, REDIS, USER, State, write_private

MAKE_TIMEOUT_S, START_TIMEOUT_S, STALE_GRACE_S = 300.0, 120.0, 5.0

SETTINGS = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    "max_connections": "200",
    "max_locks_per_transaction": "256",  # a shard's schema holds about 50 locks while it is made or dropped
    "max_prepared_transactions": "20",
    "max_replication_slots": "20",
    "max_wal_senders": "20",
    "max_logical_replication_workers": "20",
    "max_worker_processes": "32",
    "wal_level": "logical",  # moves
    "wal_sender_timeout": "30s",
    "wal_receiver_timeout": "30s",
    "track_commit_timestamp": "on",
    "shared_buffers": "32MB",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %q%u@%d ",
}
# For tests: a crash of the machine may lose the data, the crash of a server does not. So synchronous_commit stays on.
FAST_SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "dynamic_shared_memory_type": "mmap",  # leaves nothing in /dev/shm after SIGKILL
    "max_wal_size": "256MB",
    "min_wal_size": "32MB",
}


@dataclass(frozen=True, slots=True)
class Site:
    """Where a cluster is made, with what, and how (the keeper's mode)."""

    home: Path
    control: Control
    mode: str
    postgres: Postgres
    redis: Path | None

    def directory(self, *parts: str) -> Path:
        """A new directory that the servers can write to."""
        path = self.home.joinpath(*parts)
        path.mkdir(mode=0o700)
        if self.mode == "nobody":
            nobody.give(path)
        return path

    def file(self, path: Path, text: str) -> None:
        """A private file that the servers can read."""
        write_private(path, text)
        if self.mode == "nobody":
            nobody.give(path)


def in_parallel(do: Callable[[str], None], names: Iterable[str]) -> None:
    """*do* for every name at once; the first failure is raised when all have ended."""
    with ThreadPoolExecutor(16) as pool:
        futures = [pool.submit(do, name) for name in names]
    for future in futures:
        future.result()


def prepare(site: Site, *, clear: bool) -> None:
    """Make the directories of the cluster; after a crash (*clear*) end what still works in them."""
    (site.home / "logs").mkdir(mode=0o700, exist_ok=True)
    if not (site.home / "servers").exists():
        site.directory("servers")
    if clear:
        for path in (site.home / "servers").iterdir():
            if path.is_dir():
                clear_stale(path)


def missing(home: Path, state: State) -> list[str]:
    """Names of the servers whose data was not made yet, or not to the end."""
    return [name for name in state.ports if not (home / "servers" / name).exists()]


def make_data(site: Site, state: State, names: list[str]) -> None:
    """Make the data directories of *names*; they appear when they are whole."""
    building = site.home / "building"
    shutil.rmtree(building, ignore_errors=True)
    site.directory("building")
    first, *others = names
    _initdb(site, state, site.directory("building", first))
    _single_user(site, building / first, f"CREATE DATABASE {DATABASE}")

    def copy(name: str) -> None:
        target = site.directory("building", name)
        argv = [_program("cp"), "-a", f"{building / first}/.", str(target)]
        site.control.run(f"copy-{name}", argv, timeout_s=MAKE_TIMEOUT_S)

    in_parallel(copy, others)
    catalog_server = next(iter(state.ports))
    if catalog_server in names:
        _single_user(site, building / catalog_server, f"CREATE DATABASE {CATALOG_DATABASE}")
    for name in names:
        (building / name).rename(site.home / "servers" / name)
    shutil.rmtree(building)


def start(site: Site, state: State, names: list[str]) -> None:
    """Start the servers *names* (``redis`` among them) and wait until all are ready."""
    settings = SETTINGS | (FAST_SETTINGS if state.fast else {})
    if state.fast and site.postgres.major >= 18:
        settings["io_method"] = "sync"  # three processes less per server
    settings |= state.settings
    lines = ["# Written at every start; ALTER SYSTEM is the place for changes."]
    lines += [f"{key} = '{value.replace(chr(39), chr(39) * 2)}'" for key, value in settings.items()]
    site.file(site.home / "servers" / "shardkit.conf", "\n".join(lines) + "\n")
    in_parallel(lambda name: _start_redis(site, state) if name == REDIS else _start_postgres(site, state, name), names)


def clear_stale(directory: Path) -> None:
    """After a crash: end what still works in *directory*, and drop a lock file that names nobody. Raises LocalClusterError."""
    deadline = time.monotonic() + STALE_GRACE_S
    number = signal.SIGINT
    while pids := _at_work_in(directory):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        if time.monotonic() > deadline:
            if number == signal.SIGKILL:
                raise LocalClusterError(f"process {pids[0]} works in {directory} and does not go away; end it first")
            deadline, number = deadline + STALE_GRACE_S, signal.SIGKILL
        time.sleep(0.01)
    # Its process id may belong to anybody by now; PostgreSQL would refuse to start then.
    (directory / "postmaster.pid").unlink(missing_ok=True)


def _at_work_in(directory: Path) -> list[int]:
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                if (process / "cwd").readlink() == directory:
                    found.append(int(process.name))
    return found


def _initdb(site: Site, state: State, directory: Path) -> None:
    argv = [site.postgres["initdb"], "-D", str(directory), "-U", USER, "-E", "UTF8", "--no-sync", "--no-instructions"]
    # The built-in collation is the same on every machine.
    argv += ["--locale-provider=builtin", "--locale=C.UTF-8"] if site.postgres.major >= 17 else ["--locale=C"]
    argv += ["--wal-segsize=1"] if state.fast else []
    password_file = directory.with_name("password")
    if state.password is None:
        argv += ["-A", "trust"]
    else:
        site.file(password_file, state.password + "\n")
        argv += ["-A", "scram-sha-256", f"--pwfile={password_file}"]
    site.control.run("initdb", argv, timeout_s=MAKE_TIMEOUT_S)
    password_file.unlink(missing_ok=True)
    with (directory / "postgresql.conf").open("a") as file:
        file.write("\ninclude_if_exists = '../shardkit.conf'\n")


def _single_user(site: Site, directory: Path, statement: str) -> None:
    # Without a server and before the passwords count: cheaper than a start, a connection and a stop.
    script = directory.with_name("script.sql")
    site.file(script, statement + "\n")
    argv = [site.postgres["postgres"], "--single", "-D", str(directory), "-c", "fsync=off", "postgres"]
    site.control.run("create-database", argv, timeout_s=MAKE_TIMEOUT_S, stdin=str(script))
    script.unlink()


def _start_postgres(site: Site, state: State, name: str) -> None:
    directory, port = site.home / "servers" / name, state.ports[name]
    lock = directory / "postmaster.pid"

    def ready(pid: int) -> bool:
        with contextlib.suppress(FileNotFoundError):
            lines = lock.read_text().splitlines()
            return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready"
        return False

    argv = [site.postgres["postgres"], "-D", str(directory), "-p", str(port), "-c", f"cluster_name={name}"]
    # The data of a temporary cluster is thrown away: no need for a last checkpoint.
    stop = signal.SIGQUIT if site.control.process else signal.SIGINT
    site.control.start(name, argv, timeout_s=START_TIMEOUT_S, ready=ready, stop=stop)


def _start_redis(site: Site, state: State) -> None:
    directory = site.home / "servers" / REDIS
    if not directory.exists():
        site.directory("servers", REDIS)
    lines = [f"bind {HOST}", f"port {state.redis_port}", "protected-mode yes", 'save ""', "appendonly no"]
    lines += [f"dir {json.dumps(str(directory))}"]
    lines += [f"requirepass {state.password}"] if state.password else []
    site.file(directory / "redis.conf", "\n".join(lines) + "\n")

    def ready(_pid: int) -> bool:
        try:
            with socket.create_connection((HOST, state.redis_port or 0), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False

    argv = [str(site.redis), str(directory / "redis.conf")]
    site.control.start(REDIS, argv, timeout_s=START_TIMEOUT_S, ready=ready, stop=signal.SIGTERM)


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise LocalClusterError(f"the program {name!r} is not in PATH; nothing was started")
    return found
