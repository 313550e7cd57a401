# Generated from shardkit/_async/stream.py by tests/generate_sync.py: change that file instead.
"""A fan-out whose rows do not have to fit into memory: a cursor for each chunk, merged as batches arrive."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from types import TracebackType
from typing import Any, Self

from shardkit._sync import colour
from shardkit._sync.asking import Asking, Servers
from shardkit.core.merge import Merge
from shardkit.core.merge import Row as RawRow
from shardkit.core.shardmap import Route
from shardkit.errors import FanOutError
from shardkit.orm.fanload import Answer, agreed, finished, key_of
from shardkit.orm.fanplan import Plan
from shardkit.orm.fanwatch import Watch


class RowStream:
    """Rows in order, batch by batch: ``with kit.fan_out_stream(...) as rows: for row in rows``.

    It holds one connection and one open transaction on each server until the block ends, and at most *batch* rows of each
    chunk of shards. Each server's rows are those of one moment; a shard that moves meanwhile is read to its end where it was.
    A connection that breaks ends it with FanOutError, which says how many rows came before.
    """

    def __init__(
        self,
        servers: Servers,
        plan: Plan,
        statement: Any,
        asking: Asking,
        routes: Sequence[Route],
        *,
        limit: int | None,
        offset: int,
        batch: int,
        deadline_s: float,
        watch: Watch,
    ) -> None:
        self._servers, self._plan, self._statement, self._asking, self._routes = servers, plan, statement, asking, routes
        self._limit, self._offset, self._batch, self._deadline_s = limit, offset, batch, deadline_s
        self._cursors: list[tuple[Any, str]] = []
        self._watch = watch(routes)

    def __enter__(self) -> Self:
        self._asking.message = self._watch.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._servers.let_go(self._asking)
        finally:
            self._watch.__exit__(kind, error, traceback)

    def __iter__(self) -> Iterator[Any]:
        self._cursors = self._servers.declare(self._asking, self._routes)
        first = self._fetch(range(len(self._cursors)))
        oids = agreed(list(first.values()))
        code_points = all(answer.code_points for answer in first.values())
        key = key_of(self._plan, oids, code_points=code_points) if self._plan.orders else None
        merge = Merge(len(self._cursors), key)
        given = 0
        answers, left = first, self._limit
        to_skip = self._offset
        while answers:
            for stream, answer in answers.items():
                merge.feed(stream, answer.rows, more=len(answer.rows) == self._batch)
            while rows := list(islice(merge.take(), self._batch)):
                skipped = min(to_skip, len(rows))
                to_skip -= skipped
                for row in self._made(oids, rows[skipped:][:left]):
                    given += 1
                    yield row
                if left is not None:
                    left = max(left - (len(rows) - skipped), 0)
                    if not left:
                        return
            answers = self._fetch(merge.hungry, given=given)

    def _made(self, oids: Sequence[int], rows: list[RawRow]) -> list[Any]:
        made, _ = colour.in_greenlet(
            partial(finished, self._plan, self._statement, oids, rows, guide=self._servers.guide)
        )
        return made

    def _fetch(self, streams: Any, *, given: int = 0) -> dict[int, Answer]:
        """The next batch of each of *streams*; of several servers at once."""
        by_connection: dict[Any, list[int]] = {}
        for stream in sorted(streams):
            by_connection.setdefault(self._cursors[stream][0], []).append(stream)
        if not by_connection:
            return {}
        calls = [
            partial(self._servers.fetch, self._asking, connection, [(n, self._cursors[n][1]) for n in mine], self._batch)
            for connection, mine in by_connection.items()
        ]
        found = colour.gather(calls, timeout_s=self._deadline_s, cut=self._asking.cut)
        if self._asking.failures:
            said = next(iter(self._asking.failures.values()))
            raise FanOutError(
                f"a server did not go on, after {given} rows were given: {said}. Those are right; begin again behind the last "
                "one (ORDER BY a unique key, and WHERE key > it), or from the beginning",
                failures=self._asking.failures,
            ) from said
        return {stream: answer for part in found for stream, answer in part.items()}
