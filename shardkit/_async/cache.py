"""The one door to Redis: short time-outs, no retries, a bounded pool and a breaker, so that its trouble stays its own.

Every connection knows the *term* of the master behind it, and every value ends with the one it was put there in: what
another master wrote, or this one before a restart, is not seen. Whatever goes wrong is one error, ``UnreachableError``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

from redis import exceptions as redis_errors

from shardkit._async import colour
from shardkit._async.nodes import POOL_WAIT_S, TROUBLE, Command, Node, One, UnreachableError, topology
from shardkit.core import cacheproto, cachescripts
from shardkit.core.cachewire import packed_get, packed_mget
from shardkit.db.forked import in_forked_child

SCRIPT_WAIT_S: Final = 0.5
"""The few that fill, and the writers, wait longer for a connection than the many that read."""
MARKED_AT_ONCE: Final = 1000
PROBE_S: Final = 1.0
FAILURES: Final = 5
"""Failures in a row that open the breaker; silence opens it at once, because it cost somebody time."""


class Store:
    """Values by tag and name. Every call raises UnreachableError where Redis is not to be had."""

    def __init__(self, url: str, *, timeout_s: float, limit: int, recovered: Callable[[], Any]) -> None:
        self._begin = partial(topology, url, timeout_s=timeout_s, limit=limit)
        self._topology = self._begin()
        self._recovered = recovered
        self._timeout_s, self._failures, self._answered = timeout_s, 0, 0.0
        self.open = False
        """The breaker: while it is open nobody waits for Redis; a background probe closes it."""
        self.closed = False
        self._batch = colour.Batch(self._get_all)
        in_forked_child(self._after_fork)

    def _after_fork(self) -> None:
        self._topology, self.open = self._begin(), False  # connections, slots and the probe are the parent's

    async def fetch(self, tag: str, names: Sequence[str]) -> list[Any]:
        """What is stored under *names*, None for markers too: one GET or MGET, with those of other callers of the moment."""
        return await self._batch.get(tag, names)

    async def peek(self, tag: str, names: Sequence[str]) -> list[bytes | None]:
        """What is stored under *names*, of whatever term, markers too."""
        values: list[bytes | None]
        values, _ = await self._run(tag, lambda _: ("MGET", *[f"sk:{{{tag}}}:{name}" for name in names]), SCRIPT_WAIT_S)
        return values

    async def _get_all(self, wanted: Sequence[tuple[str, Sequence[str]]]) -> list[Any]:
        """What is stored under the names of each tag, one after the other."""
        tag, names = wanted[0]
        if len(wanted) == 1:
            return await self._get(tag, f"sk:{{{tag}}}:", names)
        if isinstance(self._topology, One):
            return await self._get(tag, "", [f"sk:{{{at}}}:{name}" for at, names in wanted for name in names])
        by_tag: dict[str, list[str]] = {}
        for at, names in wanted:
            by_tag.setdefault(at, []).extend(names)
        found = {at: iter(await self._get(at, f"sk:{{{at}}}:", names)) for at, names in by_tag.items()}
        return [next(found[at]) for at, names in wanted for _ in names]

    async def _get(self, tag: str, before: str, names: Sequence[str]) -> list[Any]:
        if len(names) == 1:
            value, term = await self._run(tag, packed_get(before + names[0]))
            return [cacheproto.of_term(value, term)]
        values, term = await self._run(tag, packed_mget(before, names))
        return cacheproto.all_of_term(values, term)

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
        """The script MARK, for so many at a time that Redis answers in time."""
        for start in range(0, len(names), MARKED_AT_ONCE):
            some = names[start : start + MARKED_AT_ONCE]
            await self._script(cachescripts.MARK, tag, some, lambda _: (xid, epoch, ttl_ms))

    async def scan(self, pattern: str, *, limit: int) -> list[bytes]:
        """Some keys like *pattern*."""
        found: list[bytes] = []
        for node in await self._topology.nodes():
            cursor: Any = 0
            while len(found) < limit:
                scan = ("SCAN", cursor, "MATCH", pattern, "COUNT", 500)
                (cursor, keys), _ = await self._node_call(node, partial(_whatever_term, scan))
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
        self.closed = True
        with suppress(*TROUBLE, UnreachableError):
            for node in await self._topology.nodes():
                await node.close()

    async def _script(
        self, source: str, tag: str, names: Sequence[str], arguments: Callable[[bytes], Sequence[Any]]
    ) -> tuple[Any, bytes]:
        keys = [f"sk:{{{tag}}}:{name}" for name in names]
        sha1 = cachescripts.SHA1[source]
        try:
            return await self._run(tag, lambda t: ("EVALSHA", sha1, len(keys), *keys, *arguments(t)), SCRIPT_WAIT_S)
        except redis_errors.NoScriptError:
            return await self._run(tag, lambda t: ("EVAL", source, len(keys), *keys, *arguments(t)), SCRIPT_WAIT_S)

    async def _run(self, tag: str, command: Command, wait_s: float = POOL_WAIT_S) -> tuple[Any, bytes]:
        if self.open:
            raise UnreachableError
        try:
            node = await self._topology.node(tag)
        except TROUBLE as exc:
            self._failed(exc)
            raise UnreachableError from exc
        return await self._node_call(node, command, wait_s)

    async def _node_call(self, node: Node, command: Command, wait_s: float = POOL_WAIT_S) -> tuple[Any, bytes]:
        try:
            answer = await node.call(command, wait_s=wait_s)
        except redis_errors.NoScriptError:
            raise
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
        except TROUBLE as exc:
            self._topology.changed()
            self._failed(exc)
            raise UnreachableError from exc
        self._failures, self._answered = 0, time.monotonic()
        return answer

    def _failed(self, exc: BaseException) -> None:
        self._failures += 1
        silent = time.monotonic() - self._answered > self._timeout_s * 0.9  # nobody else had an answer meanwhile either
        slow = silent and isinstance(exc, redis_errors.TimeoutError | TimeoutError)
        if not self.open and not self.closed and (slow or self._failures >= FAILURES):
            self.open = True
            colour.background(self._probe)

    async def _probe(self) -> None:
        while not self.closed:
            await colour.pause(PROBE_S)
            try:
                for node in await self._topology.nodes():
                    await node.call(lambda _: ("PING",))
            except (*TROUBLE, UnreachableError):
                self._topology.changed()
                continue
            self.open, self._failures = False, 0
            await self._recovered()
            return


def _whatever_term(arguments: Sequence[Any], _term: bytes) -> Sequence[Any]:
    """The command of *arguments*, which no term changes."""
    return arguments
