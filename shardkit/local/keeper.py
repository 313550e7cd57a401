"""The keeper: one small process per local cluster that starts its servers and never leaves one behind.

It is run by path, ``python -I -S keeper.py HOME OWNER``, and knows the standard library only, so that it is up in a
blink and can be the single-threaded parent every server needs: Linux' "signal me when my parent dies" follows the
*thread* that started a process, and threads of an application come and go.

OWNER is the process id a temporary cluster belongs to: when it is gone, so are the servers and HOME. With OWNER 0 the
keeper detaches and lives until it is told to stop. It is asked through ``HOME/keeper.sock``: one JSON object each way.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pwd
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER, CLONE_NEWUSER = 1, 36, 0x10000000
OWNER_CHECK_S = 0.5
STOP_GRACE_S, QUIT_GRACE_S, KILL_GRACE_S = 15.0, 3.0, 5.0
CANNOT_EXEC = 97

libc = ctypes.CDLL(None, use_errno=True)


def nobody_ids() -> tuple[int, int]:
    """User and group id of ``nobody``; initdb wants a user that has a name."""
    entry = pwd.getpwnam("nobody")
    return entry.pw_uid, entry.pw_gid


def become(mode: str) -> None:
    """Stop being root, as PostgreSQL demands: by another name in a namespace of our own, or as ``nobody``."""
    if mode == "plain":
        return
    uid, gid = nobody_ids()
    if mode == "nobody":
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
        return
    if libc.unshare(CLONE_NEWUSER):
        raise OSError(ctypes.get_errno(), "no user namespaces here")
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} 0 1"), ("gid_map", f"{gid} 0 1")):
        with open(f"/proc/self/{name}", "w") as file:  # noqa: PTH123  pathlib is slow to import
            file.write(text)


def choose_mode() -> str:
    """How servers are run here: ``plain`` for a user, ``userns`` for root, ``nobody`` where namespaces are refused."""
    if os.geteuid():
        return "plain"
    if wanted := os.environ.get("SHARDKIT_LOCAL_ROOT_MODE"):
        return wanted
    pid = os.fork()
    if not pid:
        try:
            become("userns")
            os._exit(0 if os.getuid() else 1)
        except BaseException:  # noqa: BLE001  a forked child must not run on, whatever happens
            os._exit(1)
    return "nobody" if os.waitpid(pid, 0)[1] else "userns"


def processes() -> Iterator[tuple[int, int]]:
    """(process id, parent's process id) of everything that runs."""
    for name in os.listdir("/proc"):  # noqa: PTH208  no pathlib here: it would slow the start
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123  no pathlib here
                yield int(name), int(file.read().rpartition(b")")[2].split()[1])


def children(*parents: int) -> list[int]:
    """Process ids of the direct children of *parents*."""
    return [pid for pid, parent in processes() if parent in parents]


def send(pids: list[int], number: int) -> None:
    """Signal every process of *pids* that still exists."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


class Keeper:
    """The processes of one cluster, by name, with their exit code once they have one."""

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.pids: dict[str, int] = {}
        self.codes: dict[str, int] = {}
        self.stop_signals: dict[str, int] = {}

    def reap(self) -> None:
        """Collect the exit codes of what has ended, orphans of a killed postmaster included."""
        names = {pid: name for name, pid in self.pids.items()}
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    return
                if pid in names:
                    self.codes[names[pid]] = os.waitstatus_to_exitcode(status)

    def running(self) -> dict[str, int]:
        """Process ids, by name, of what runs."""
        self.reap()
        return {name: pid for name, pid in self.pids.items() if name not in self.codes}

    def start(
        self, *, name: str, argv: list[str], log: str, stdin: str = os.devnull, stop: int = signal.SIGINT
    ) -> dict[str, Any]:
        """Start *argv* under *name* if it does not run; what it writes is appended to *log*."""
        if name in self.running():
            return self.status()
        keeper = os.getpid()
        pid = os.fork()
        if not pid:
            self.run_child(argv, keeper=keeper, stdin=stdin, log=log)
        self.pids[name], self.stop_signals[name] = pid, stop
        self.codes.pop(name, None)
        return self.status()

    def run_child(self, argv: list[str], *, keeper: int, stdin: str, log: str) -> None:
        """In the new process: become the server. Never returns."""
        try:
            signal.set_wakeup_fd(-1)
            os.setsid()
            source, out = os.open(stdin, os.O_RDONLY), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            os.dup2(source, 0)
            os.dup2(out, 1)
            os.dup2(out, 2)
            become(self.mode)
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGINT, 0, 0, 0)
            if os.getppid() == keeper:  # else it died before the line above
                os.chdir("/")
                os.execve(argv[0], argv, {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"})  # noqa: S606  no shell is what is wanted
        except BaseException as exc:  # noqa: BLE001  a forked child must not run on, whatever happens
            os.write(2, f"cannot start {argv[0]}: {exc}\n".encode())
        os._exit(CANNOT_EXEC)

    def status(self) -> dict[str, Any]:
        """What runs, and how the rest ended."""
        return {"running": self.running(), "codes": self.codes, "mode": self.mode}

    def signal(self, *, name: str, number: int) -> dict[str, Any]:
        """Send a signal to one process; SIGKILL takes its children too, so that none writes on."""
        if pid := self.running().get(name):
            if number == signal.SIGKILL:
                self.kill([pid])
            else:
                send([pid], number)
        return self.status()

    def strays(self) -> list[int]:
        """What a dead postmaster left behind; the keeper, as subreaper, is now its parent."""
        known = set(self.running().values())
        return [pid for pid in children(os.getpid()) if pid not in known]

    def kill(self, parents: list[int]) -> None:
        """SIGKILL *parents*, their children and all strays, and see them gone."""
        family = [*parents, *children(*parents)]
        deadline = time.monotonic() + KILL_GRACE_S
        while family := [*(pid for pid in self.running().values() if pid in parents), *self.strays(), *family]:
            send(family, signal.SIGKILL)
            family.clear()
            if time.monotonic() > deadline:
                return
            time.sleep(0.002)

    def stop(self) -> None:
        """Take everything down: kindly, then firmly, then by force."""
        for grace_s, firm in ((STOP_GRACE_S, False), (QUIT_GRACE_S, True)):
            for name, pid in self.running().items():
                send([pid], signal.SIGQUIT if firm else self.stop_signals[name])
                send([pid, *children(pid)], signal.SIGCONT)  # a frozen process cannot go
            deadline = time.monotonic() + grace_s
            while self.running() and time.monotonic() < deadline:
                time.sleep(0.002)
        self.kill(list(self.running().values()))


def answer(keeper: Keeper, connection: socket.socket) -> bool:
    """Read one request, do it, reply; whether the keeper is to go on."""
    connection.settimeout(5)
    with connection, connection.makefile("rwb") as stream:
        request = json.loads(stream.readline() or b'{"do": "status"}')
        do = request.pop("do")
        if do == "down":
            os.dup(connection.fileno())  # closes only with this process: so the client sees when it is gone
        try:
            reply = keeper.status() if do in {"status", "down"} else getattr(keeper, do)(**request)
        except OSError as exc:
            reply = {"error": str(exc)}
        stream.write(json.dumps(reply).encode() + b"\n")
    return bool(do != "down")


def serve(keeper: Keeper, listener: socket.socket, *, owner: int) -> None:
    """Answer until told to stop, or until the owner is gone."""
    wake, waker = socket.socketpair()
    waker.setblocking(False)  # noqa: FBT003  its signature
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    leaving: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: leaving.append(number))
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while not leaving and (not owner or os.getppid() == owner):
        ready, _, _ = select.select([listener, wake], [], [], OWNER_CHECK_S if owner else None)
        if wake in ready:
            wake.recv(4096)
            keeper.reap()
        if listener in ready:
            # a client that went away, or talks nonsense
            with contextlib.suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
                if not answer(keeper, listener.accept()[0]):
                    return


def main(home: str, owner: int) -> None:
    """Announce ``HOME/keeper.sock`` on stdout, then keep the cluster."""
    os.chdir(home)  # a socket's path has room for 107 bytes only: so its name is relative
    os.umask(0o077)
    mode = choose_mode()
    with contextlib.suppress(FileNotFoundError):
        os.unlink("keeper.sock")  # noqa: PTH108  no pathlib here
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("keeper.sock")
    listener.listen(64)
    if not owner and os.fork():
        os._exit(0)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    os.write(1, json.dumps({"mode": mode}).encode() + b"\n")
    with open(os.devnull, "r+b") as null:  # noqa: PTH123  no pathlib here
        os.dup2(null.fileno(), 0)
        os.dup2(null.fileno(), 1)
    keeper = Keeper(mode)
    try:
        serve(keeper, listener, owner=owner)
    finally:
        keeper.stop()
        if owner:
            import shutil

            shutil.rmtree(home, ignore_errors=True)
        else:
            os.unlink("keeper.sock")  # noqa: PTH108  no pathlib here


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
