"""The delay proxy carries exactly the bytes it gets, both ways, and ends what either side ends. (How long it delays
is a figure of the benchmarks, not a test.)"""

from __future__ import annotations

import random
import socket
import socketserver
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from benchmarks.delay_proxy import DelayProxy

BOUND_S = 90


class Echo(socketserver.BaseRequestHandler):
    """Sends everything back; on b"bye" it hangs up first."""

    def handle(self) -> None:
        while data := self.request.recv(1 << 16):
            if data == b"bye":
                return
            self.request.sendall(data)


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64  # more than connect at once

    def handle_error(self, request: object, client_address: object) -> None:
        """A connection that breaks is what some of these tests are about; no need to print it."""


@pytest.fixture
def proxy() -> Iterator[DelayProxy]:
    with Server(("127.0.0.1", 0), Echo) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        with DelayProxy("127.0.0.1", server.server_address[1], one_way_s=0.0002, calibrate=False) as running:
            yield running
        server.shutdown()


def connect(proxy: DelayProxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=BOUND_S)


def read_to_end(connection: socket.socket) -> bytes:
    parts = []
    while part := connection.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


def exchange(proxy: DelayProxy, data: bytes) -> bytes:
    """Send *data* while reading what comes back, half-close, and return all that came."""
    with connect(proxy) as connection, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(read_to_end, connection)
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        return answer.result(BOUND_S)


def test_bytes_are_equal_both_ways_through_a_half_close(proxy: DelayProxy) -> None:
    data = random.Random(7).randbytes(3_000_000)
    assert exchange(proxy, data) == data


def test_connections_do_not_mix(proxy: DelayProxy) -> None:
    sent = [bytes([number]) * (1000 + 777 * number) for number in range(40)]
    with ThreadPoolExecutor(len(sent)) as pool:
        assert list(pool.map(lambda data: exchange(proxy, data), sent)) == sent


def test_small_writes_keep_their_order(proxy: DelayProxy) -> None:
    sent = [b"%06d" % number for number in range(2000)]
    with connect(proxy) as connection, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(read_to_end, connection)
        for part in sent:
            connection.sendall(part)
        connection.shutdown(socket.SHUT_WR)
        assert answer.result(BOUND_S) == b"".join(sent)


def test_server_that_hangs_up_is_seen_by_the_client(proxy: DelayProxy) -> None:
    with connect(proxy) as connection:
        connection.sendall(b"bye")
        assert connection.recv(16) == b""


def test_client_that_resets_leaves_the_proxy_serving(proxy: DelayProxy) -> None:
    connection = connect(proxy)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    connection.sendall(b"x" * 100_000)
    connection.close()
    assert exchange(proxy, b"still here") == b"still here"


def test_reader_that_never_reads_stops_no_other(proxy: DelayProxy) -> None:
    with connect(proxy) as stuck:
        stuck.settimeout(0.2)
        with pytest.raises(TimeoutError):
            stuck.sendall(bytes(1 << 27))  # more than all buffers on the way hold
        assert exchange(proxy, b"fine") == b"fine"


def test_dead_target_closes_the_connection() -> None:
    with socket.socket() as held:  # it stays ours, and nobody listens
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        with DelayProxy("127.0.0.1", port, calibrate=False) as proxy, connect(proxy) as connection:
            assert connection.recv(16) == b""


def test_leaving_the_block_ends_the_process(proxy: DelayProxy) -> None:
    process = proxy._process
    assert process is not None
    proxy.__exit__(None, None, None)
    assert process.returncode == 0
    with pytest.raises(ConnectionRefusedError):
        connect(proxy)
