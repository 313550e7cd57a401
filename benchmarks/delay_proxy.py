"""A TCP proxy that delays every byte by a fixed time each way: a network between us and a server on loopback.

It runs as a process of its own, single threaded, and sleeps in the kernel until the next byte is due. Every direction
of every connection is delayed by the same time, so what is due next is always the head of one queue, and bytes in
flight do not wait for one another: latency rises, throughput stays. asyncio cannot do this: its timers are rounded up
to whole milliseconds.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import selectors
import socket
import struct
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import median
from time import monotonic, perf_counter
from types import TracebackType
from typing import Final, Self

_ROOT: Final = Path(__file__).parents[1]
_CHUNK: Final = 1 << 18
_WINDOW: Final = 1 << 24
"""Bytes in flight per direction; beyond it we stop reading, as a network's own window would."""


class ProxyProcess:
    """A proxy on a free loopback port, in a process of its own that ends when the ``with`` block or this process does."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        line = self.heard()
        if not line:
            self.__exit__(None, None, None)
            raise RuntimeError("the proxy did not start; its own message is above")
        self.port = int(line)
        return self

    def ask(self, question: str) -> bytes:
        """Send a line to the process, and give its answer."""
        assert self._process
        assert self._process.stdin
        self._process.stdin.write(f"{question}\n".encode())
        self._process.stdin.flush()
        return self.heard()

    def heard(self) -> bytes:
        """A line of the process; empty if it has ended."""
        assert self._process
        assert self._process.stdout
        return self._process.stdout.readline()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin
        assert process.stdout
        process.stdin.close()  # its sign to end
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


class DelayProxy(ProxyProcess):
    """A proxy in front of ``target_host:target_port``, for the time of a ``with`` block.

    *one_way_s* is added in each direction. Waking up costs time too (0.1 ms each way on a small virtual machine), so
    the first proxy of a program measures that and asks for less (*calibrate*); :func:`added_rtt_s` says what comes out.
    """

    def __init__(self, target_host: str, target_port: int, *, one_way_s: float = 0.000375, calibrate: bool = True) -> None:
        asked_s = _asked_s(one_way_s) if calibrate else one_way_s
        super().__init__([sys.executable, "-E", __file__, target_host, str(target_port), str(asked_s)])


def added_rtt_s(*, one_way_s: float = 0.000375, calibrate: bool = True, rounds: int = 200) -> float:
    """What the proxy really adds to a ping-pong on this machine, in seconds: put it into the benchmark's params."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_echo, args=(listener,), daemon=True).start()
        port = listener.getsockname()[1]
        with DelayProxy("127.0.0.1", port, one_way_s=one_way_s, calibrate=calibrate) as proxy:
            return _ping_s(proxy.port, rounds) - _ping_s(port, rounds)


@cache
def _asked_s(one_way_s: float) -> float:
    """The delay to ask for, so that *one_way_s* comes out."""
    asked_s = one_way_s
    for _ in range(3):
        excess_s = added_rtt_s(one_way_s=asked_s, calibrate=False) / 2 - one_way_s
        asked_s = max(0.0, asked_s - excess_s)
    return asked_s


def _echo(listener: socket.socket) -> None:
    for _ in range(2):
        connection, _address = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection:
            while data := connection.recv(_CHUNK):
                connection.sendall(data)


def _ping_s(port: int, rounds: int) -> float:
    taken = []
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(rounds):
            start = perf_counter()
            connection.sendall(b"ping")
            connection.recv(16)
            taken.append(perf_counter() - start)
    return median(taken)


# ---- the process


class _Timer:
    """A Linux timerfd: nanoseconds, where epoll's own timeout knows milliseconds. (``os`` has it from 3.13 on.)"""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.fd: int = self._libc.timerfd_create(1, os.O_NONBLOCK | os.O_CLOEXEC)  # 1: CLOCK_MONOTONIC
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")

    def wake_at(self, deadline: float) -> None:
        """Make ``fd`` readable at *deadline* on the monotonic clock, or at once where that has passed."""
        nanoseconds = max(1, int(deadline * 1e9))
        when = struct.pack("@4q", 0, 0, *divmod(nanoseconds, 1_000_000_000))
        self._libc.timerfd_settime(self.fd, 1, when, None)  # 1: absolute; setting it also clears an expiry


@dataclass(slots=True, eq=False)
class End:
    """One socket of a pair. *other* is where its bytes go."""

    sock: socket.socket
    accepted: bool = False
    """It is the client's, not the one we opened to the target."""
    other: End | None = None
    to_write: bytearray = field(default_factory=bytearray)
    in_flight: int = 0
    ended: bool = False
    """The peer sent its last byte."""
    finish: bool = False
    """Nothing will follow ``to_write``."""
    finished: bool = False
    interest: int = 0


class Proxy:
    """Carries bytes both ways, in its own process; what is said of *one_way_s* is done in :meth:`take`."""

    def __init__(self, target: tuple[str, int], *, one_way_s: float) -> None:
        self._target, self._one_way_s = target, one_way_s
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self._listener.setblocking(False)
        self._timer = _Timer()
        self._due: deque[tuple[float, End, bytes]] = deque()
        self._selector = selectors.EpollSelector()
        for source in (self._listener, self._timer.fd, sys.stdin.fileno()):
            self._selector.register(source, selectors.EVENT_READ, source)

    def run(self) -> None:
        """Carry bytes until standard input ends."""
        print(self._listener.getsockname()[1], flush=True)
        while True:
            for key, events in self._selector.select():
                match key.data:
                    case End() as end:
                        self._ready(end, events)
                    case self._listener:
                        self._accept()
                    case self._timer.fd:
                        pass
                    case _:
                        if not self.told():
                            return
            self._deliver()

    def told(self) -> bool:
        """Standard input has something to say; False for the end."""
        return False

    def take(self, end: End, data: bytes) -> None:
        """*data* came in at *end* (nothing: it will send no more)."""
        assert end.other
        self.carry_at(monotonic() + self._one_way_s, end.other, data)

    def carry_at(self, due: float, to: End, data: bytes) -> None:
        """Write *data* at *due* on the monotonic clock, which is no earlier than that of anything before."""
        self._due.append((due, to, data))
        if len(self._due) == 1:
            self._timer.wake_at(due)

    def carry(self, to: End, data: bytes) -> None:
        """Write *data* now; at once, or after what waits there."""
        to.to_write += data
        to.finish = to.finish or not data
        self._flush(to)

    def _accept(self) -> None:
        with suppress(BlockingIOError):
            client = End(self._listener.accept()[0], accepted=True)
            try:
                server = End(socket.create_connection(self._target, timeout=5))
            except OSError:
                client.sock.close()  # as a refused connection, one step later
                return
            client.other, server.other = server, client
            for end in (client, server):
                end.sock.setblocking(False)
                end.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._watch(end)

    def _ready(self, end: End, events: int) -> None:
        if end.other is None:
            return  # closed by an event before this one
        try:
            if events & selectors.EVENT_WRITE:
                self._flush(end)
            if events & selectors.EVENT_READ:
                data = end.sock.recv(_CHUNK)
                end.ended = not data
                end.other.in_flight += len(data)
                self.take(end, data)
                if end.other:  # or it was closed by what it took
                    self._watch(end)
        except BlockingIOError:
            pass
        except OSError:
            self._close(end)

    def _deliver(self) -> None:
        if not self._due:
            return
        while self._due and self._due[0][0] <= monotonic():
            _, end, data = self._due.popleft()
            if end.other is None:
                continue
            try:
                self.carry(end, data)
            except OSError:
                self._close(end)
        self._timer.wake_at(self._due[0][0] if self._due else monotonic() + 3600)

    def _flush(self, end: End) -> None:
        """Write what *end* takes now; a half-closed connection stays half closed, as without us."""
        assert end.other
        with suppress(BlockingIOError):
            while end.to_write:
                sent = end.sock.send(end.to_write)
                del end.to_write[:sent]
                end.in_flight -= sent
        if end.finish and not end.to_write and not end.finished:
            end.finished = True
            end.sock.shutdown(socket.SHUT_WR)
        if end.finished and end.other.finished:
            self._close(end)
            return
        self._watch(end)
        self._watch(end.other)

    def _watch(self, end: End) -> None:
        """Read while the other side's window is open, write while something waits."""
        assert end.other
        reading = not end.ended and end.other.in_flight < _WINDOW
        interest = (selectors.EVENT_READ if reading else 0) | (selectors.EVENT_WRITE if end.to_write else 0)
        if interest == end.interest:
            return
        if not end.interest:
            self._selector.register(end.sock, interest, end)
        elif interest:
            self._selector.modify(end.sock, interest, end)
        else:
            self._selector.unregister(end.sock)
        end.interest = interest

    def _close(self, end: End) -> None:
        """Close both sides at once: one is broken, or both are done."""
        for side in (end, end.other):
            if side is None:
                continue
            if side.interest:
                self._selector.unregister(side.sock)
                side.interest = 0
            side.sock.close()
        if end.other:
            end.other.other = None
        end.other = None


def run_as_told(kind: Callable[..., Proxy], about: str, figure: str) -> None:
    """The program of a proxy: an address and one figure, which *kind* calls *figure*. Ends when its input ends."""
    parser = argparse.ArgumentParser(description=f"{about} HOST:PORT. Ends when its input ends.")
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument(figure, type=float)
    given = vars(parser.parse_args())
    kind((given.pop("host"), given.pop("port")), **given).run()


if __name__ == "__main__":
    run_as_told(Proxy, "Delay every byte to and from", "one_way_s")
