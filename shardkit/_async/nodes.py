"""Connections to Redis servers: bounded, with short time-outs and no retries, and which server has which key.

Every connection knows the *term* of the master behind it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

from redis import exceptions as redis_errors
from redis.asyncio.connection import Connection as RedisConnection
from redis.asyncio.connection import SSLConnection, UnixDomainSocketConnection, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.crc import key_slot

from shardkit._async import colour
from shardkit.core import cacheproto

POOL_WAIT_S: Final = 0.01
RECHECK_S: Final = 0.25
"""How long a connection may believe that its server is still a master."""

Command = Callable[[bytes], Sequence[Any]] | bytes
"""From the term to the arguments of a command; or a command packed already."""


class UnreachableError(Exception):
    """Redis did not do it, or nobody knows whether it did."""


class BusyError(UnreachableError):
    """All connections stayed in use; says nothing about Redis."""


class _NoMasterError(Exception):
    """The server is a replica."""


TROUBLE: Final = (redis_errors.RedisError, OSError, EOFError, TimeoutError, _NoMasterError)


class Link:
    """One connection and whom it leads to."""

    __slots__ = ("checked", "connection", "term")

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.term = b""
        self.checked = 0.0

    async def call(self, command: Command) -> Any:
        """One command and its answer."""
        connection = self.connection
        packed = [command] if isinstance(command, bytes) else connection.pack_command(*command(self.term))
        await connection.send_packed_command(packed, check_health=False)
        return await connection.read_response()

    async def check(self) -> None:
        """Ask the server who it is, both questions in one flight; only a master will do. After an error it is to be closed."""
        connection = self.connection
        questions = [*connection.pack_command("INFO", "server"), *connection.pack_command("INFO", "replication")]
        await connection.send_packed_command([b"".join(questions)], check_health=False)
        server, replication = bytes(await connection.read_response()), bytes(await connection.read_response())
        found = dict(line.split(":", 1) for line in (server + b"\n" + replication).decode().splitlines() if ":" in line)
        if found.get("role") != "master":
            raise _NoMasterError("the server behind this connection is no master")
        self.term, self.checked = cacheproto.term(found), time.monotonic()

    async def close(self) -> None:
        """End it, whatever state it is in."""
        with suppress(*TROUBLE):
            await self.connection.disconnect()


class Node:
    """A bounded pool of connections to one server."""

    def __init__(self, connect: Callable[[], Any], *, limit: int) -> None:
        self._connect = connect
        self._idle: deque[Link] = deque()
        self._slots = colour.Slots(limit)

    async def call(self, command: Command, *, wait_s: float = POOL_WAIT_S) -> tuple[Any, bytes]:
        """Answer of *command* and the term of it; once more on a fresh connection where an idle one had been closed."""
        if not await self._slots.take(wait_s):
            raise BusyError
        try:
            while True:
                link, reused = await self._take()
                try:
                    reply = await link.call(command)
                except redis_errors.ResponseError:
                    self._idle.append(link)
                    raise
                except redis_errors.TimeoutError:
                    await link.close()
                    raise
                except (redis_errors.ConnectionError, OSError):
                    await link.close()
                    if not reused:
                        raise
                    continue
                except BaseException:  # cancelled: an answer may be under way
                    await link.close()
                    raise
                self._idle.append(link)
                return reply, link.term
        finally:
            self._slots.give()

    async def _take(self) -> tuple[Link, bool]:
        while True:
            try:
                link = self._idle.pop()
            except IndexError:
                break
            if time.monotonic() - link.checked < RECHECK_S:
                return link, True
            try:
                await link.check()
            except redis_errors.TimeoutError:
                await link.close()
                raise
            except TROUBLE:
                await link.close()
            else:
                return link, True
        link = Link(await self._connect())
        try:
            await link.connection.connect()
            await link.check()
        except BaseException:
            await link.close()
            raise
        return link, False

    async def close(self) -> None:
        """Close what is idle."""
        while self._idle:
            await self._idle.pop().close()


class One:
    """One server, found anew for each connection where Sentinels say who it is."""

    def __init__(self, connect: Callable[[], Any], *, limit: int) -> None:
        self._node = Node(connect, limit=limit)

    async def node(self, tag: str) -> Node:  # noqa: ARG002  # all tags are there
        return self._node

    async def nodes(self) -> list[Node]:
        return [self._node]

    def changed(self) -> None:
        """They find out by themselves."""


class Cluster:
    """A Redis Cluster: slots by server, asked for again after any sign of change."""

    def __init__(self, options: dict[str, Any], *, limit: int) -> None:
        self._options, self._limit = options, limit
        self._nodes: dict[tuple[str, int], Node] = {}
        self._slots: dict[int, tuple[str, int]] = {}

    def _at(self, address: tuple[str, int]) -> Node:
        async def connect() -> Any:
            return _connection({**self._options, "host": address[0], "port": address[1], "db": 0})

        return self._nodes.setdefault(address, Node(connect, limit=self._limit))

    async def node(self, tag: str) -> Node:
        if not self._slots:
            await self._learn()
        address = self._slots.get(key_slot(tag.encode()))
        if address is None:
            raise redis_errors.ConnectionError("nobody serves this slot")
        return self._at(address)

    async def nodes(self) -> list[Node]:
        if not self._slots:
            await self._learn()
        return [self._at(address) for address in sorted(set(self._slots.values()))]

    def changed(self) -> None:
        self._slots = {}

    async def _learn(self) -> None:
        known = [self._at((self._options["host"], self._options["port"])), *self._nodes.values()]
        problem: BaseException | None = None
        for node in known:
            try:
                ranges, _ = await node.call(lambda _: ("CLUSTER", "SLOTS"))
            except (*TROUBLE, UnreachableError) as exc:
                problem = exc
                continue
            slots = {}
            for first, last, master, *_ in ranges:
                slots.update(dict.fromkeys(range(first, last + 1), (bytes(master[0]).decode(), int(master[1]))))
            self._slots = slots
            return
        raise redis_errors.ConnectionError("no node of the cluster answers") from problem


def _connection(options: dict[str, Any]) -> Any:
    options = dict(options)
    kind = options.pop("connection_class", RedisConnection)
    if issubclass(kind, SSLConnection) and str(options.get("ssl_cert_reqs", "required")) != "none":
        options["ssl_check_hostname"] = True  # a certificate of somebody else's is none; redis-py 5 does not look
    return kind(**options)


def topology(url: str, *, timeout_s: float, limit: int) -> One | Cluster:
    """From ``redis://``, ``rediss://``, ``unix://``, ``redis+cluster://`` or ``redis+sentinel://a:1,b:2/name[/db]``."""
    parse: Any = parse_url
    scheme, _, rest = url.partition("://")
    plain, _, kind = scheme.partition("+")
    times = {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s}
    common = {
        **times,
        "retry": Retry(NoBackoff(), 0),
        "health_check_interval": 0,
        "protocol": 2,
    }
    if kind == "sentinel":
        hosts, _, path = rest.partition("/")
        credentials, _, addresses = hosts.rpartition("@")
        service, _, db = path.partition("/")
        parsed = parse(f"{plain}://{credentials + '@' if credentials else ''}localhost/{db or 0}")
        sentinels = [(h, int(p or 26379)) for h, _, p in (a.partition(":") for a in addresses.split(","))]
        untyped: Any = Sentinel  # redis-py types it in some releases only
        guard = untyped(sentinels, **times)

        async def connect() -> Any:
            host, port = await guard.discover_master(service)
            return _connection({**parsed, **common, "host": host, "port": port})

        return One(connect, limit=limit)
    options = {**parse(f"{plain}://{rest}"), **common}
    if kind == "cluster":
        return Cluster({"port": 6379, **options}, limit=limit)
    if options.get("connection_class") is UnixDomainSocketConnection:
        options.pop("socket_connect_timeout")

    async def connect_one() -> Any:
        return _connection(options)

    return One(connect_one, limit=limit)
