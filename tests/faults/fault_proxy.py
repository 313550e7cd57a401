"""A TCP proxy that fails on demand: swallows every byte, or cuts a connection right before or right after a COMMIT."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading

COMMITS = (b"COMMIT", b"_shardkit_commit")


class FaultProxy:
    """In front of one server. ``mode`` is "pass", "swallow", "cut before commit" or "cut after commit"."""

    def __init__(self, host, port):
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.mode = "pass"
        self.cuts = self.accepted = 0
        self._sockets = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for sock in (self._listener, *list(self._sockets)):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.accepted += 1
                server = socket.create_connection(self._target)
                self._sockets |= {client, server}
                threading.Thread(target=self._to_server, args=(client, server), daemon=True).start()
                threading.Thread(target=self._to_client, args=(server, client), daemon=True).start()

    def _to_server(self, client, server):
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                if self.mode == "swallow":
                    continue
                if self.mode.startswith("cut") and any(word in data for word in COMMITS):
                    if self.mode == "cut after commit":
                        self.mode = "answering"
                        server.sendall(data)
                        continue
                    self._cut(client, server)
                    return
                server.sendall(data)
        self._close(client, server)

    def _to_client(self, server, client):
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                if self.mode == "swallow":
                    continue
                if self.mode == "answering":
                    while data and b"COMMIT\0" not in data:
                        client.sendall(data)
                        data = server.recv(65536)
                    self._cut(client, server)
                    return
                client.sendall(data)
        self._close(client, server)

    def _cut(self, client, server):
        self.mode = "pass"
        self.cuts += 1
        with contextlib.suppress(OSError):
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._close(client, server)

    def _close(self, *sockets):
        for sock in sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
            self._sockets.discard(sock)
