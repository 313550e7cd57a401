"""A local cluster of real servers: made once, started again at will, taken down without a trace."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Self

from shardkit.errors import LocalClusterError, SettingsError, UnknownServerError
from shardkit.local import build
from shardkit.local.build import Site
from shardkit.local.control import Control
from shardkit.local.state import REDIS, SETTINGS_FILE, STATE_FILE, LocalServer, State

STOP_TIMEOUT_S = 30.0
OURS = ("servers", "building", "logs", STATE_FILE, SETTINGS_FILE, "keeper.sock", "keeper.log", "lock")


class LocalCluster:
    """The running servers of one cluster; ``down()``, or the end of its ``with`` block, stops them.

    A cluster without a data directory belongs to the process that made it, and goes with it, data and all.
    """

    def __init__(self, state: State, site: Site) -> None:
        self.state = state
        self._site = site
        self._control = site.control
        self._owner = os.getpid()

    @property
    def servers(self) -> tuple[LocalServer, ...]:
        """The PostgreSQL servers, ``pg1`` first."""
        return self.state.servers

    @property
    def catalog_url(self) -> str:
        """Address of the database ``shardkit_catalog`` on the first server, with the password."""
        return self.state.catalog_url

    @property
    def redis_url(self) -> str | None:
        """Address of the Redis-protocol server, with the password; None where there is none."""
        return self.state.redis_url

    @property
    def data_dir(self) -> Path:
        """Where data, logs and the state file are."""
        return self._site.home

    @property
    def settings_file(self) -> Path:
        """The ``shardkit.toml`` with every address; it holds passwords."""
        return self.data_dir / SETTINGS_FILE

    def down(self) -> None:
        """Stop every server. Data in a temporary directory is removed, other data stays. Again is fine."""
        if self._control.process and os.getpid() != self._owner:
            return  # a forked child must not take its parent's servers down
        with locked(self.data_dir):
            self._control.down()
        if self._control.process:
            shutil.rmtree(self.data_dir, ignore_errors=True)
            atexit.unregister(self.down)

    def running(self) -> dict[str, int]:
        """Process ids of the servers that run, by name."""
        pids = self._control.running() or {}
        return {name: pids[name] for name in self.state.all_ports if name in pids}

    def pid(self, name: str) -> int | None:
        """Process id of the server *name* (``redis`` too), or None while it is stopped."""
        return self.running().get(self._known(name))

    def start_server(self, name: str) -> None:
        """Start a stopped server and wait until it is ready; one that runs is left alone."""
        if self.pid(name) is None:
            build.start(self._site, self.state, [name])

    def stop_server(self, name: str, *, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop one server: ``fast`` breaks its connections, ``immediate`` also leaves it to crash recovery.

        Raises SettingsError, UnknownServerError, LocalClusterError if it may still run.
        """
        if mode not in {"fast", "immediate"}:
            raise SettingsError(f"a server is stopped 'fast' or 'immediate', not {mode!r}; nothing was stopped")
        if self._known(name) == REDIS:
            number = signal.SIGTERM if mode == "fast" else signal.SIGKILL
        else:
            number = signal.SIGINT if mode == "fast" else signal.SIGQUIT
        if not self._control.end(name, number=number, timeout_s=STOP_TIMEOUT_S):
            raise LocalClusterError(f"{name} did not stop in {STOP_TIMEOUT_S:g} s; it may still run")

    def kill_server(self, name: str) -> None:
        """SIGKILL a server and all its children, as a power cut would. Raises UnknownServerError, LocalClusterError."""
        if not self._control.end(self._known(name), number=signal.SIGKILL, timeout_s=STOP_TIMEOUT_S):
            raise LocalClusterError(f"{name} did not die in {STOP_TIMEOUT_S:g} s; it may still run")

    def __enter__(self) -> Self:
        """The cluster itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Take it down."""
        self.down()

    def __repr__(self) -> str:
        """Names and directory, no secrets."""
        return f"LocalCluster({', '.join(server.dsn for server in self.servers)}; {str(self.data_dir)!r})"

    def _known(self, name: str) -> str:
        if name in self.state.all_ports:
            return name
        raise UnknownServerError(f"no server {name!r} here, there are {', '.join(self.state.all_ports)}; nothing was done")


@contextlib.contextmanager
def locked(home: Path) -> Iterator[None]:
    """Hold the cluster in *home* against another start or stop at the same time."""
    try:
        descriptor = os.open(home / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except FileNotFoundError:  # nothing there to be held
        yield
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def attach(data_dir: Path) -> tuple[State, Control] | None:
    """State of the cluster in *data_dir* and the way to its keeper; None where no cluster was made."""
    home = Path(data_dir).absolute()
    state = State.load(home)
    return (state, Control(home)) if state else None


def remove_data(home: Path, *, whole: bool) -> None:
    """Remove what a cluster left in *home*, and *home* itself if *whole* and then empty."""
    for name in OURS:
        path = home / name
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    if whole:
        with contextlib.suppress(OSError):
            home.rmdir()
