"""Redis servers of one's own to be ill-treated, and a relay in front of them that can be pointed elsewhere."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time

import redis

from shardkit.local.binaries import find_redis
from shardkit.local.ports import HOST, free_ports


class RedisServer:
    """One Valkey or Redis process; *options* are those of its command line."""

    password: str | None = None

    def __init__(self, *options: str, port: int | None = None, password: str | None = None) -> None:
        self.port, self.password = port or free_ports(1)[0], password
        self.directory = tempfile.TemporaryDirectory(prefix="redislab", ignore_cleanup_errors=True)
        self.options = options
        self.start()

    def start_as(self, conf) -> None:
        """A Sentinel instead, with the configuration file *conf*."""
        self.port = free_ports(1)[0]
        self.directory, self.options = (
            tempfile.TemporaryDirectory(prefix="redislab", ignore_cleanup_errors=True),
            ("--sentinel",),
        )
        self._run([str(find_redis()), str(conf), "--port", str(self.port), "--bind", HOST, "--sentinel"])

    def start(self) -> None:
        argv = [str(find_redis()), "--port", str(self.port), "--bind", HOST, "--save", "", "--dir", self.directory.name]
        argv += ["--repl-diskless-sync-delay", "0"]
        self._run([*argv, *self.options])

    def _run(self, argv) -> None:
        self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline, pause = time.monotonic() + 120, threading.Event()
        while True:
            try:
                return self.ask("PING")
            except redis.RedisError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    self.close()
                    raise
                pause.wait(0.02)

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}/0"

    def ask(self, *command: object):
        with redis.Redis(host=HOST, port=self.port, password=self.password, socket_timeout=60) as client:
            return client.execute_command(*command)

    def freeze(self) -> None:
        os.kill(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(60)

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.thaw()
        self.kill()
        self.directory.cleanup()

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Relay:
    """Forwards connections to ``target`` (a port); ``point`` cuts the open ones and changes it."""

    def __init__(self, target: int) -> None:
        self.target = target
        self._open: set[socket.socket] = set()
        self._server = socket.create_server((HOST, 0), backlog=256)
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}/0"

    def point(self, target: int) -> None:
        self.target = target
        for one in list(self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._server.close()
        self.point(self.target)

    def _accept(self) -> None:
        while True:
            try:
                here, _ = self._server.accept()
            except OSError:
                return
            try:
                there = socket.create_connection((HOST, self.target), timeout=60)
            except OSError:
                here.close()
                continue
            for one in (here, there):
                one.settimeout(None)
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for a, b in ((here, there), (there, here)):
                threading.Thread(target=self._carry, args=(a, b), daemon=True).start()

    def _carry(self, a: socket.socket, b: socket.socket) -> None:
        self._open.add(a)
        try:
            while data := a.recv(65_536):
                b.sendall(data)
        except OSError:
            pass
        finally:
            self._open.discard(a)
            for one in (a, b):
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
            a.close()
