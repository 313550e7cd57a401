"""The one door to Redis: short time-outs, no retries, a bounded pool and a breaker, so that its trouble stays its own.

Every connection knows the *term* of the master behind it, and every value ends with the one it was put there in: what
another master wrote, or this one before a restart, is not seen. Whatever goes wrong is one error, ``UnreachableError``.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from hashlib import sha1
from typing import Any, Final

from redis import exceptions as redis_errors
from redis.asyncio.connection import Connection as RedisConnection
from redis.asyncio.connection import SSLConnection, UnixDomainSocketConnection, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.crc import key_slot

from shardkit._async import colour
from shardkit.core import cacheproto, cachescripts

POOL_WAIT_S: Final = 0.01
SCRIPT_WAIT_S: Final = 0.5
"""The few that fill, and the writers, wait longer for a connection than the many that read."""
PROBE_S: Final = 1.0
RECHECK_S: Final = 0.25
"""How long a connection may believe that its server is still a master."""
FAILURES: Final = 5
"""Failures in a row that open the breaker; silence opens it at once, because it cost somebody time."""

Command = Callable[[bytes], Sequence[Any]]
"""From the term to the arguments of a command."""


class UnreachableError(Exception):
    """Redis did not do it, or nobody knows whether it did."""


class BusyError(UnreachableError):
    """All connections stayed in use; says nothing about Redis."""


class _NoMasterError(Exception):
    """The server is a replica."""


_TROUBLE: Final = (redis_errors.RedisError, OSError, EOFError, TimeoutError, _NoMasterError)


class Link:
    """One connection and whom it leads to."""

    __slots__ = ("checked", "connection", "term")

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.term = b""
        self.checked = 0.0

    async def call(self, arguments: Sequence[Any]) -> Any:
        """One command and its answer."""
        connection = self.connection
        await connection.send_packed_command(connection.pack_command(*arguments), check_health=False)
        return await connection.read_response()

    async def check(self) -> None:
        """Ask the server who it is; only a master will do."""
        answers = [await self.call(("INFO", section)) for section in ("server", "replication")]
        lines = b"\n".join(bytes(answer) for answer in answers).decode().splitlines()
        found = dict(line.split(":", 1) for line in lines if ":" in line)
        if found.get("role") != "master":
            raise _NoMasterError("the server behind this connection is no master")
        self.term, self.checked = cacheproto.term(found), time.monotonic()

    async def close(self) -> None:
        """End it, whatever state it is in."""
        with suppress(*_TROUBLE):
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
                    reply = await link.call(command(link.term))
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
            except _TROUBLE:
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


class _One:
    """One server, found anew for each connection where Sentinels say who it is."""

    def __init__(self, connect: Callable[[], Any], *, limit: int) -> None:
        self._node = Node(connect, limit=limit)

    async def node(self, tag: str) -> Node:  # noqa: ARG002  # all tags are there
        return self._node

    async def nodes(self) -> list[Node]:
        return [self._node]

    def changed(self) -> None:
        """They find out by themselves."""


class _Cluster:
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
            except (*_TROUBLE, UnreachableError) as exc:
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


def topology(url: str, *, timeout_s: float, limit: int) -> _One | _Cluster:
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
        guard: Any = Sentinel(sentinels, **times)  # type: ignore[no-untyped-call,unused-ignore]

        async def connect() -> Any:
            host, port = await guard.discover_master(service)
            return _connection({**parsed, **common, "host": host, "port": port})

        return _One(connect, limit=limit)
    options = {**parse(f"{plain}://{rest}"), **common}
    if kind == "cluster":
        return _Cluster({"port": 6379, **options}, limit=limit)
    if options.get("connection_class") is UnixDomainSocketConnection:
        options.pop("socket_connect_timeout")

    async def connect_one() -> Any:
        return _connection(options)

    return _One(connect_one, limit=limit)


class Store:
    """Values by tag and name. Every call raises UnreachableError where Redis is not to be had."""

    def __init__(self, url: str, *, timeout_s: float, limit: int, recovered: Callable[[], Any]) -> None:
        self._topology = topology(url, timeout_s=timeout_s, limit=limit)
        self._recovered = recovered
        self._timeout_s, self._failures, self._answered = timeout_s, 0, 0.0
        self.open = False
        """The breaker: while it is open nobody waits for Redis; a background probe closes it."""
        self._closed = False
        self._batch = colour.Batch(self._get_all)

    async def fetch(self, tag: str, names: Sequence[str]) -> list[Any]:
        """What is stored under *names*, None for markers too: one GET or MGET, with those of other callers of the moment."""
        return await self._batch.get(tag, names)

    async def peek(self, tag: str, names: Sequence[str]) -> list[bytes | None]:
        """What is stored under *names*, of whatever term, markers too."""
        values, _ = await self._run(tag, lambda _: ("MGET", *[f"sk:{{{tag}}}:{name}" for name in names]), SCRIPT_WAIT_S)
        return values  # type: ignore[no-any-return]

    async def _get_all(self, wanted: Sequence[tuple[str, str]]) -> list[Any]:
        if len(wanted) == 1:
            ((tag, name),) = wanted
            value, term = await self._run(tag, lambda _: ("GET", f"sk:{{{tag}}}:{name}"))
            return [cacheproto.of_term(value, term)]
        if len({tag for tag, _ in wanted}) == 1 or isinstance(self._topology, _One):
            keys = [f"sk:{{{at}}}:{name}" for at, name in wanted]
            values, term = await self._run(wanted[0][0], lambda _: ("MGET", *keys))
            return cacheproto.all_of_term(values, term)
        found: dict[tuple[str, str], Any] = {}
        for tag in {tag for tag, _ in wanted}:
            ours = [key for key in wanted if key[0] == tag]
            found |= zip(ours, await self._get_all(ours), strict=True)
        return [found[key] for key in wanted]

    async def lease(
        self, tag: str, names: Sequence[str], *, token: str, epoch: int, lease_ms: int, outdated: Sequence[bytes]
    ) -> tuple[list[bytes], bytes]:
        """The script LEASE, and the term in which it ran: what is put there under the lease belongs to that one."""

        def arguments(term: bytes) -> Sequence[Any]:
            return (token, epoch, lease_ms, 3000, term, *(old and old + term for old in outdated))

        (first, *answers), term = await self._script(cachescripts.LEASE, tag, ("@b", *names), arguments)
        return [first, *(b"V" + a[1 : -len(term)] if a[:1] == b"V" else a for a in answers)], term

    async def swap(self, tag: str, changes: Sequence[tuple[str, bytes, bytes, int]]) -> list[bool]:
        """The script SWAP, of (name, old, new, ttl ms); true for each that was done."""
        arguments = [part for _, old, new, ttl in changes for part in (old, new, ttl)]
        done, _ = await self._script(cachescripts.SWAP, tag, [name for name, *_ in changes], lambda _: arguments)
        return [bool(one) for one in done]

    async def mark(self, tag: str, names: Sequence[str], *, xid: int, epoch: int, ttl_ms: int) -> None:
        """The script MARK."""
        await self._script(cachescripts.MARK, tag, names, lambda _: (xid, epoch, ttl_ms))

    async def scan(self, pattern: str, *, limit: int) -> list[bytes]:
        """Some keys like *pattern*."""
        found: list[bytes] = []
        for node in await self._topology.nodes():
            cursor: Any = 0
            while len(found) < limit:
                at = cursor
                (cursor, keys), _ = await self._node_call(node, lambda _, at=at: ("SCAN", at, "MATCH", pattern, "COUNT", 500))  # type: ignore[misc]
                found += keys
                if int(cursor) == 0:
                    break
        return found[:limit]

    async def info(self) -> list[dict[str, str]]:
        """What each server says of itself."""
        answers = []
        for node in await self._topology.nodes():
            answer, _ = await self._node_call(node, lambda _: ("INFO",))
            text = bytes(answer).decode()
            answers.append(dict(line.split(":", 1) for line in text.splitlines() if ":" in line and not line.startswith("#")))
        return answers

    async def close(self) -> None:
        """Close every idle connection and stop probing."""
        self._closed = True
        with suppress(*_TROUBLE, UnreachableError):
            for node in await self._topology.nodes():
                await node.close()

    async def _script(
        self, source: str, tag: str, names: Sequence[str], arguments: Callable[[bytes], Sequence[Any]]
    ) -> tuple[Any, bytes]:
        keys = [f"sk:{{{tag}}}:{name}" for name in names]
        try:
            return await self._run(tag, lambda t: ("EVALSHA", _SHA[source], len(keys), *keys, *arguments(t)), SCRIPT_WAIT_S)
        except NoScriptError:
            return await self._run(tag, lambda t: ("EVAL", source, len(keys), *keys, *arguments(t)), SCRIPT_WAIT_S)

    async def _run(self, tag: str, command: Command, wait_s: float = POOL_WAIT_S) -> tuple[Any, bytes]:
        if self.open:
            raise UnreachableError
        try:
            node = await self._topology.node(tag)
        except _TROUBLE as exc:
            self._failed(exc)
            raise UnreachableError from exc
        return await self._node_call(node, command, wait_s)

    async def _node_call(self, node: Node, command: Command, wait_s: float = POOL_WAIT_S) -> tuple[Any, bytes]:
        try:
            answer = await node.call(command, wait_s=wait_s)
        except redis_errors.NoScriptError as exc:
            raise NoScriptError from exc
        except (
            redis_errors.ReadOnlyError,
            redis_errors.MovedError,
            redis_errors.AskError,
            redis_errors.ClusterDownError,
        ) as exc:
            self._topology.changed()
            await node.close()
            raise UnreachableError from exc
        except redis_errors.ResponseError as exc:  # of this key only, as when it holds a list
            raise UnreachableError from exc
        except _TROUBLE as exc:
            self._topology.changed()
            self._failed(exc)
            raise UnreachableError from exc
        self._failures, self._answered = 0, time.monotonic()
        return answer

    def _failed(self, exc: BaseException) -> None:
        self._failures += 1
        silent = time.monotonic() - self._answered > self._timeout_s * 0.9  # nobody else had an answer meanwhile either
        slow = silent and isinstance(exc, redis_errors.TimeoutError | TimeoutError)
        if not self.open and not self._closed and (slow or self._failures >= FAILURES):
            self.open = True
            colour.background(self._probe)

    async def _probe(self) -> None:
        while not self._closed:
            await colour.pause(PROBE_S)
            try:
                for node in await self._topology.nodes():
                    await node.call(lambda _: ("PING",))
            except (*_TROUBLE, UnreachableError):
                self._topology.changed()
                continue
            self.open, self._failures = False, 0
            await self._recovered()
            return


class NoScriptError(Exception):
    """The server does not know the script yet."""


_SHA: Final = {s: sha1(s.encode()).hexdigest() for s in (cachescripts.LEASE, cachescripts.MARK, cachescripts.SWAP)}  # noqa: S324  # Redis' name for it
