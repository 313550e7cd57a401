"""How the servers are asked: a message for each flight of chunks, again where a shard moved, and never past the deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from shardkit._async import colour
from shardkit.catalog.decisions import Decisions
from shardkit.catalog.router import Router
from shardkit.core.chunks import chunks_of
from shardkit.core.outcome import FENCE
from shardkit.core.shardmap import Route, Server, ShardMap
from shardkit.db.scatter import DriverError, Idle, cut, declared, fetched, local_settings, missing_schemas, script, view
from shardkit.errors import (
    DeadlineError,
    FanOutError,
    NoSnapshotError,
    PoolTimeoutError,
    ServerDownError,
    ShardKitError,
    ShardMovedError,
)
from shardkit.orm.fanload import Answer
from shardkit.orm.fanwatch import Message, unseen
from shardkit.settings import Settings

PAUSE_S = 0.02
IN_ONE_FLIGHT = 4
"""Chunks sent to a server at once; their locks are held together."""

Chunk = tuple[Route, ...]


class Aim(NamedTuple):
    """Which shards to ask, by which map."""

    known: ShardMap
    choose: Callable[[ShardMap], list[Route]]

    @property
    def routes(self) -> list[Route]:
        """Those shards."""
        return self.choose(self.known)


@dataclass(slots=True, kw_only=True)
class Asking:
    """One fan-out under way."""

    aim: Aim
    before: str
    branch: str
    after: str
    values: Sequence[Any]
    whole: bool
    """Whether all shards are asked, so that its texts come again and are worth preparing."""
    deadline: float
    answers: list[Answer] = field(default_factory=list)
    failures: dict[int, BaseException] = field(default_factory=dict)
    moved: list[Route] = field(default_factory=list)
    torn: bool = False
    """Whether tenants went from shard to shard meanwhile, so that what was answered is counted twice or not at all."""
    busy: set[Any] = field(default_factory=set)
    held: dict[str, Any] = field(default_factory=dict)
    """By server, the connection whose transaction is a consistent view."""
    message: Message = unseen

    @property
    def left_s(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def text(self, chunk: Chunk) -> bytes:
        """The statement for *chunk*."""
        return script(self.before, self.branch, self.after, tuple((route.shard, route.schema) for route in chunk))

    def fail(self, routes: Iterable[Route], error: BaseException) -> None:
        """Note what the shards of *routes* said."""
        if self.left_s <= 0:
            error = DeadlineError("the deadline of the fan-out passed before the answer came; nothing was changed")
        self.failures.update((route.shard, error) for route in routes)

    def afresh(self, known: ShardMap) -> list[Route]:
        """Forget what was answered: whom to ask by the map *known*."""
        self.answers.clear()
        self.failures.clear()
        self.moved, self.torn, self.aim = [], False, self.aim._replace(known=known)
        return self.aim.routes

    def cut(self) -> None:
        """End every wait: the deadline has passed."""
        for connection in list(self.busy):
            cut(connection)


class AsyncServers:
    """Asks the servers of a router's map, over connections of its own."""

    def __init__(self, router: Router, settings: Settings, decisions: Decisions) -> None:
        self._router, self._settings, self._decisions = router, settings, decisions
        self._idle = Idle(settings)
        router.watch.on_change(self._idle.keep)
        self._gates: dict[str, colour.Gate] = {}

    async def ask(self, asking: Asking, routes: Sequence[Route]) -> None:
        """Ask every shard of *routes*, and those that moved once more where they went, until each answered or failed."""
        while routes:
            known = self._router.map
            calls: list[Callable[[], Any]] = [
                partial(self._ask_server, asking, known.server(name), chunks)
                for name, chunks in chunks_of(routes, of=len(known.placements)).items()
            ]
            await colour.gather(calls, timeout_s=asking.left_s, cut=asking.cut)
            moved, asking.moved = asking.moved, []
            routes = await self._onward(asking, moved) if moved else []
            if moved and self._router.map.pins is not asking.aim.known.pins:
                asking.torn = bool(asking.held)
                if asking.torn:
                    return
                routes = asking.afresh(self._router.map)

    async def ask_at_once(self, asking: Asking, routes: Sequence[Route]) -> None:
        """Ask on views of all servers between which no cross-shard transaction was being committed.

        A commit is decided in the catalog before any server carries it out. So if none was under way before the first view
        was taken, and none was decided until the last one was, each is in all of the views or in none.
        """
        names = sorted({route.server for route in routes})
        while True:
            moment = await colour.in_thread(self._decisions.moment)
            try:
                if moment is not None:
                    views: list[Callable[[], Any]] = [partial(self._view, asking, self._router.map.server(n)) for n in names]
                    await colour.gather(views, timeout_s=asking.left_s, cut=asking.cut)
                    if asking.failures or not await colour.in_thread(self._decisions.decided_since, moment):
                        routes = [route for route in routes if route.shard not in asking.failures]
                        await self.ask(asking, routes)
                        if not asking.torn:
                            return
                        routes = asking.afresh(self._router.map)
                        names = sorted({route.server for route in routes})
            finally:
                await self.let_go(asking)
            if asking.left_s < PAUSE_S:
                raise NoSnapshotError(
                    "transactions over several shards were being committed all the time until the deadline: no view of all "
                    "shards was consistent. Try again, or allow more time (deadline_s)"
                )
            await asyncio.sleep(PAUSE_S)

    async def _view(self, asking: Asking, server: Server) -> None:
        """A transaction on *server* that sees what is committed now."""
        try:
            connection, _ = await self._connection(server)
            asking.busy.add(connection)
            asking.held[server.name] = connection
            await connection.execute(view())
        except (ShardKitError, DriverError, OSError) as exc:
            asking.fail((self._router.map.route(shard) for shard in self._router.map.shards_on(server.name)), exc)

    @property
    def guide(self) -> Router:
        """What sessions of found objects ask for their way."""
        return self._router

    async def declare(self, asking: Asking, routes: Sequence[Route]) -> list[tuple[Any, str]]:
        """A cursor for each chunk, open on a view of its server: connection and name.

        An open cursor reads its view to the end, wherever its shards move meanwhile. Where one has moved before, everything is
        begun again: a view taken before a shard arrived would show only a part of its rows.
        """
        while True:
            found = await self._declare(asking, routes)
            if asking.moved and not asking.failures:
                await self.let_go(asking)
                moved, asking.moved = asking.moved, []
                onward = {route.shard: route for route in await self._onward(asking, moved)}
                routes = [onward.get(route.shard, route) for route in routes]
            if asking.failures:
                said = next(iter(asking.failures.values()))
                raise FanOutError(f"{len(asking.failures)} shards did not answer: {said}", failures=asking.failures) from said
            if asking.held:
                return found

    async def _declare(self, asking: Asking, routes: Sequence[Route]) -> list[tuple[Any, str]]:
        known = self._router.map
        chunks = chunks_of(routes, of=len(known.placements))
        calls: list[Callable[[], Any]] = [partial(self._view, asking, known.server(name)) for name in chunks]
        await colour.gather(calls, timeout_s=asking.left_s, cut=asking.cut)
        opened: list[Callable[[], Any]] = [
            partial(self._open, asking, asking.held[name], mine) for name, mine in chunks.items() if name in asking.held
        ]
        found = await colour.gather(opened, timeout_s=asking.left_s, cut=asking.cut) if opened else []
        return [cursor for part in found for cursor in part]

    async def _open(self, asking: Asking, connection: Any, chunks: Sequence[Chunk]) -> list[tuple[Any, str]]:
        cursors = []
        for number, chunk in enumerate(chunks):
            try:
                with asking.message(connection.server, len(chunk), 1):
                    await connection.execute(declared(number, asking.text(chunk)), asking.values)
            except DriverError as exc:
                if not await self._has_moved(asking, connection, chunk, exc):
                    asking.fail(chunk, exc)
                break
            cursors.append((connection, f"c{number}"))
        return cursors

    async def _has_moved(self, asking: Asking, connection: Any, chunk: Chunk, error: Any) -> bool:
        """Whether *error* comes from shards of *chunk* that moved, which are noted."""
        if connection.closed or error.sqlstate not in FENCE:
            return False
        try:
            await connection.execute(b"ROLLBACK")
            cursor = await connection.execute(missing_schemas(), [[route.schema for route in chunk]])
            gone = {row[0] for row in await cursor.fetchall()}
        except DriverError:
            return False
        asking.moved += [route for route in chunk if route.schema in gone]
        return bool(gone)

    async def fetch(self, asking: Asking, connection: Any, streams: Sequence[tuple[int, str]], batch: int) -> dict[int, Answer]:
        """The next *batch* rows of cursors of one connection, by the number of their streams."""
        found = {}
        for stream, name in streams:
            try:
                with asking.message(connection.server, None, 1):
                    cursor = await connection.execute(fetched(name, batch))
                    rows = await cursor.fetchall()
            except DriverError as exc:
                asking.failures[-1] = exc
                break
            found[stream] = Answer((), tuple(c.type_code for c in cursor.description), rows, connection.code_points)
        return found

    async def let_go(self, asking: Asking) -> None:
        for name, connection in asking.held.items():
            asking.busy.discard(connection)
            try:
                await connection.execute(b"ROLLBACK")
                self._idle.give(self._router.map.server(name), connection)
            except DriverError:
                await connection.close()
        asking.held.clear()

    async def _ask_server(self, asking: Asking, server: Server, chunks: Sequence[Chunk]) -> None:
        """Ask one server for all its chunks; whatever happens becomes an answer, a failure or a shard to ask again."""
        waiting = list(chunks)
        if asking.held:
            try:
                for chunk in waiting:
                    asking.answers += await self._fly(asking, asking.held[server.name], [chunk])
            except (DriverError, KeyError) as exc:
                asking.fail((route for chunk in waiting for route in chunk), exc)
            return
        gate = self._gates.setdefault(server.name, colour.Gate(self._settings.fan_out_connections))
        if not await gate.enter(max(asking.left_s, 0)):
            busy = PoolTimeoutError(f"all fan-out connections to server {server.name!r} stayed busy; nothing was sent")
            asking.fail((route for chunk in waiting for route in chunk), busy)
            return
        try:
            while waiting:
                connection, fresh = await self._connection(server)
                asking.busy.add(connection)
                try:
                    await self._ask_chunks(asking, connection, waiting)
                except DriverError as exc:
                    if fresh or asking.left_s <= 0:
                        raise ServerDownError(f"the connection to server {server.name!r} broke: {exc}") from exc
                finally:
                    asking.busy.discard(connection)
                    if connection.closed:
                        await connection.close()
                    else:
                        self._idle.give(server, connection)
        except (ShardKitError, OSError) as exc:
            asking.fail((route for chunk in waiting for route in chunk), exc)
        finally:
            gate.leave()

    async def _connection(self, server: Server) -> tuple[Any, bool]:
        """A connection to *server*, and whether it was made just now (one that waited may have died meanwhile)."""
        waiting = self._idle.take(server, now=time.monotonic())
        if waiting is not None:
            return waiting, False
        made = await colour.connect_scatter(server, self._settings, cluster_id=self._router.cluster_id)
        made.born = time.monotonic()
        return made, True

    async def _ask_chunks(self, asking: Asking, connection: Any, waiting: list[Chunk]) -> None:
        """Ask for the chunks in *waiting*, and take off it what is settled. Raises DriverError if the connection is lost."""
        while waiting:
            flight = waiting[: 1 if connection.pooled else IN_ONE_FLIGHT]
            try:
                asking.answers += await self._fly(asking, connection, flight)
            except DriverError as exc:
                if connection.closed:
                    raise
                if len(flight) > 1:
                    for chunk in flight:
                        await self._ask_chunks(asking, connection, [chunk])
                else:
                    await self._sort_out(asking, connection, flight[0], exc)
            del waiting[: len(flight)]

    async def _fly(self, asking: Asking, connection: Any, flight: Sequence[Chunk]) -> list[Answer]:
        """Answers of the chunks of one flight, which make one round trip together."""
        with asking.message(connection.server, sum(map(len, flight)), len(flight)):
            cursors, rows = await self._flown(asking, connection, flight)
        return [
            Answer(
                tuple(route.shard for route in chunk),
                tuple(column.type_code for column in cursor.description),
                found,
                connection.code_points,
            )
            for chunk, cursor, found in zip(flight, cursors, rows, strict=True)
        ]

    @staticmethod
    async def _flown(asking: Asking, connection: Any, flight: Sequence[Chunk]) -> tuple[list[Any], list[Any]]:
        texts = [asking.text(chunk) for chunk in flight]
        prepare = True if asking.whole and not connection.pooled else None
        if connection.pooled and not asking.held:
            async with connection.transaction():
                await connection.execute(local_settings())
                cursors = [await connection.execute(texts[0], asking.values)]
                rows = [await cursors[0].fetchall()]
        elif len(texts) == 1:
            cursors = [await connection.execute(texts[0], asking.values, prepare=prepare)]
            rows = [await cursors[0].fetchall()]
        else:
            async with connection.pipeline():
                cursors = [await connection.execute(text, asking.values, prepare=prepare) for text in texts]
            rows = [await cursor.fetchall() for cursor in cursors]
        return cursors, rows

    async def _sort_out(self, asking: Asking, connection: Any, chunk: Chunk, error: Any) -> None:
        """A chunk failed as a whole: find the shards that moved, and what each of the others says alone."""
        if error.sqlstate in FENCE:
            cursor = await connection.execute(missing_schemas(), [[route.schema for route in chunk]])
            gone = {row[0] for row in await cursor.fetchall()}
            if gone:
                asking.moved += [route for route in chunk if route.schema in gone]
                await self._ask_chunks(asking, connection, [rest] if (rest := _without(chunk, gone)) else [])
                return
        if len(chunk) == 1:
            asking.fail(chunk, error)
            return
        for route in chunk:
            await self._ask_chunks(asking, connection, [(route,)])

    async def _onward(self, asking: Asking, moved: Sequence[Route]) -> list[Route]:
        """Where *moved* shards are now; waits for the map, bounded."""
        known = {route.shard: route.epoch for route in moved}

        def everywhere(found: ShardMap) -> bool:
            return all(found.placement(shard).epoch != epoch for shard, epoch in known.items())

        timeout_s = max(0.0, min(self._settings.move_wait_s, asking.left_s))
        found = await colour.in_thread(partial(self._router.watch.wait_for, everywhere, timeout_s=timeout_s))
        if found is not None:
            return [found.route(shard) for shard in known]
        found = self._router.map
        still = [route for route in moved if found.placement(route.shard).epoch == route.epoch]
        asking.fail(still, ShardMovedError("the shard is being moved, and the map does not say yet where it went"))
        return [found.route(route.shard) for route in moved if route not in still]

    async def close(self) -> None:
        """Close idle connections."""
        for connection in self._idle.clear():
            await connection.close()


def _without(chunk: Chunk, gone: set[str]) -> Chunk:
    return tuple(route for route in chunk if route.schema not in gone)
