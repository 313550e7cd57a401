"""Talking to a keeper: starting one, and asking it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from shardkit.errors import DiskFullError, LocalClusterError, PortTakenError

ASK_TIMEOUT_S = 60.0
ASK_TRIES = 5
POLL_S = 0.004
LOG_TAIL_LINES = 15

_KEEPER = Path(__file__).with_name("keeper.py")


@dataclass(frozen=True, slots=True)
class Control:
    """The way to the keeper of the cluster in ``home``."""

    home: Path
    process: subprocess.Popen[bytes] | None = None  # only where this process owns the cluster

    @classmethod
    def launch(cls, home: Path, *, owned: bool) -> Self:
        """Start a keeper: one that goes when this process goes (*owned*), or one that stays. Raises LocalClusterError."""
        with os.fdopen(os.open(home / "keeper.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as log:
            process = subprocess.Popen(  # noqa: S603  our own file, by our own interpreter
                [sys.executable, "-I", "-S", str(_KEEPER), str(home), str(os.getpid() if owned else 0)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the program; the keeper is told
            )
        assert process.stdout is not None
        with process.stdout as announcement:
            if not announcement.readline():
                process.wait()
                raise LocalClusterError(f"the keeper of the servers did not start; {tail(home / 'keeper.log')}")
        if owned:
            return cls(home, process)
        process.wait()
        return cls(home)

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """The keeper's answer; LocalClusterError where none runs, or where it does not answer."""
        answer = self._answer(do, arguments)
        if answer is None:
            raise LocalClusterError(f"no local cluster runs in {self.home}; `shardkit local up` starts one")
        if "error" in answer:
            raise LocalClusterError(f"the keeper of the servers could not {do}: {answer['error']}")
        return answer

    def _answer(self, do: str, arguments: dict[str, Any]) -> dict[str, Any] | None:
        """What the keeper says; None where none runs. One that hangs up ended just then, or waited too long for us: it is asked
        again, which does no harm.
        """
        for left in reversed(range(ASK_TRIES)):
            try:
                with self._connect() as connection, connection.makefile("rwb") as stream:
                    stream.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
                    stream.flush()
                    answer: dict[str, Any] = json.loads(stream.readline())
                    if do == "down":
                        stream.read()  # ends when the keeper does
                    return answer
            except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
                return None
            except (OSError, ValueError) as exc:
                if isinstance(exc, TimeoutError) or not left:
                    raise LocalClusterError(
                        f"the keeper of the servers in {self.home} does not answer; nobody knows what runs there. "
                        "Look at the process that has keeper.py in its command line"
                    ) from exc
        raise AssertionError("unreachable: the last try returns or raises")

    def running(self) -> dict[str, int] | None:
        """Process ids by name, or None where no keeper runs. Raises LocalClusterError for one that does not answer."""
        answer = self._answer("status", {})
        pids: dict[str, int] | None = answer and answer["running"]
        return pids

    def log(self, name: str) -> Path:
        """The log file of the server *name*."""
        return self.home / "logs" / f"{name}.log"

    def start(self, name: str, argv: list[str], *, timeout_s: float, ready: Callable[[int], bool], **how: Any) -> None:
        """Start a server and wait until it is ready. Raises LocalClusterError that says why it is not."""
        log = self.log(name)
        before = log.stat().st_size if log.exists() else 0
        self.ask("start", name=name, argv=argv, log=str(log), **how)
        deadline = time.monotonic() + timeout_s
        while (answer := self.ask("status")) and (pid := answer["running"].get(name)):
            if ready(pid):
                return
            if time.monotonic() > deadline:
                raise LocalClusterError(f"{name} was not ready after {timeout_s:g} s; {tail(log, skip=before)}")
            time.sleep(POLL_S)
        raise failure(f"{name} did not start (exit code {answer['codes'].get(name)})", log, skip=before)

    def run(self, name: str, argv: list[str], *, timeout_s: float, **how: Any) -> None:
        """Run a program to its end. Raises LocalClusterError with the end of what it said."""
        log = self.log(name)
        before = log.stat().st_size if log.exists() else 0
        self.ask("start", name=name, argv=argv, log=str(log), **how)
        deadline = time.monotonic() + timeout_s
        while name in (answer := self.ask("status"))["running"]:
            if time.monotonic() > deadline:
                raise LocalClusterError(f"{name} did not end in {timeout_s:g} s; {tail(log, skip=before)}")
            time.sleep(POLL_S)
        if answer["codes"][name] or b"\nERROR:" in log.read_bytes()[before:]:
            raise failure(f"{name} failed", log, skip=before)

    def end(self, name: str, *, number: int, timeout_s: float) -> bool:
        """Signal *name* and wait for its end; whether that came in time."""
        self.ask("signal", name=name, number=number)
        deadline = time.monotonic() + timeout_s
        while name in self.ask("status")["running"]:
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_S)
        return True

    def down(self) -> None:
        """Have the keeper stop everything and go; fine where none runs. Raises LocalClusterError if some may still run."""
        with contextlib.suppress(LocalClusterError):
            self.ask("down")
        if self.process:
            self.process.wait()
        if self.running() is not None:
            raise LocalClusterError(f"the servers in {self.home} did not stop in {ASK_TIMEOUT_S:g} s; some may still run")

    def _connect(self) -> socket.socket:
        # A socket's path has room for 107 bytes; through the directory's descriptor it is always short.
        directory = os.open(self.home, os.O_RDONLY)
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(ASK_TIMEOUT_S)
            connection.connect(f"/proc/self/fd/{directory}/keeper.sock")
        except BaseException:
            connection.close()
            raise
        finally:
            os.close(directory)
        return connection


def tail(log: Path, *, skip: int = 0) -> str:
    """The end of a log, for an error message."""
    text = log.read_bytes()[skip:].decode(errors="replace") if log.exists() else ""
    lines = text.splitlines()[-LOG_TAIL_LINES:]
    return f"the end of {log}:\n" + "\n".join(f"  {line}" for line in lines)


def failure(what: str, log: Path, *, skip: int) -> LocalClusterError:
    """The most telling error for a program that failed."""
    said = tail(log, skip=skip)
    if "No space left on device" in said:
        return DiskFullError(f"{what}: no space left on the disk of {log.parent.parent}; {said}")
    if "Address already in use" in said:
        return PortTakenError(f"{what}: its port is in use; {said}")
    return LocalClusterError(f"{what}; {said}")
