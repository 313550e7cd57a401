"""Ports on loopback: free ones from the kernel, and whether a named one is taken."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable

from shardkit.errors import PortTakenError, SettingsError

HOST = "127.0.0.1"


def free_ports(count: int) -> list[int]:
    """*count* different ports nobody listens on now; somebody may be faster before they are used."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((HOST, 0))
        return [each.getsockname()[1] for each in sockets]


def check_ports(ports: Iterable[int]) -> list[int]:
    """The asked-for *ports* if they can be ports at all and differ; else SettingsError."""
    ports = list(ports)
    if wrong := [port for port in ports if isinstance(port, bool) or not (0 < port < 1 << 16)]:
        raise SettingsError(f"{wrong[0]} cannot be a port: use 1 to 65535. Nothing was started")
    if len(set(ports)) < len(ports):
        raise SettingsError("a port was given twice; nothing was started")
    return ports


def check_free(ports: Iterable[int]) -> None:
    """PortTakenError, naming it, for a port that cannot be listened on."""
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do; a listener still refuses
            try:
                probe.bind((HOST, port))
            except OSError as exc:
                raise PortTakenError(
                    f"port {port} on {HOST} cannot be used ({exc.strerror}); nothing was started. "
                    "Stop what uses it, or choose another"
                ) from exc
