# Generated from shardkit/_async/fanout.py by tests/generate_sync.py: change that file instead.
"""One statement over many shards: one message per server and chunk of schemas, servers in parallel, answers merged.

A chunk's statement unites its schemas; a wide one costs planning once, and is prepared on a connection of its own. A shard
that moves meanwhile is asked again where it went, it alone. What did not answer is an error, never a gap.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from shardkit._sync import colour
from shardkit.catalog.decisions import Decisions
from shardkit.catalog.router import Router
from shardkit.core.chunks import chunks_of
from shardkit.core.hashing import TenantKey
from shardkit.core.outcome import FENCE
from shardkit.core.shardmap import Route, Server, ShardMap
from shardkit.db.scatter import DriverError, Idle, cut, local_settings, missing_schemas, script, view
from shardkit.errors import (
    DeadlineError,
    FanOutError,
    FanOutRefusedError,
    NoSnapshotError,
    PoolTimeoutError,
    ServerDownError,
    SettingsError,
    ShardKitError,
    ShardMovedError,
)
from shardkit.orm.fanload import Answer, FanOutResult, finished, merged
from shardkit.orm.fanplan import Aggregate, Plan, each_plan, plan_of, value_of
from shardkit.orm.tenancy import of_tenants
from shardkit.settings import Settings

DEADLINE_S = 30.0
MAX_ROWS = 1_000_000
PAUSE_S = 0.02
IN_ONE_FLIGHT = 4
"""Chunks sent to a server at once; their locks are held together."""

_SAME: dict[Callable[..., Any], tuple[str, ...]] = {sum: ("count", "sum"), min: ("min",), max: ("max",)}

OnError = Literal["raise", "partial"]
Chunk = tuple[Route, ...]


@dataclass(slots=True, kw_only=True)
class Asking:
    """One fan-out under way."""

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
    busy: set[Any] = field(default_factory=set)
    held: dict[str, Any] = field(default_factory=dict)
    """By server, the connection whose transaction is a consistent view."""

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

    def cut(self) -> None:
        """End every wait: the deadline has passed."""
        for connection in list(self.busy):
            cut(connection)


class FanOut:
    """Fans statements out over the servers of a router's map."""

    def __init__(self, router: Router, settings: Settings, decisions: Decisions) -> None:
        self._router, self._settings, self._decisions = router, settings, decisions
        self._idle = Idle(settings)
        self._gates: dict[str, colour.Gate] = {}

    def rows(
        self,
        statement: Any,
        params: Mapping[str, Any] | None = None,
        *,
        shards: Iterable[int] | None = None,
        tenants: Iterable[TenantKey] | None = None,
        deadline_s: float = DEADLINE_S,
        on_error: OnError = "raise",
        max_rows: int = MAX_ROWS,
        snapshot: bool = False,
    ) -> FanOutResult:
        """See ``fan_out`` of the facade."""
        if on_error not in ("raise", "partial"):
            raise SettingsError(f'on_error is "raise" or "partial", not {on_error!r}')
        routes, statement = self._aim(statement, shards, tenants)
        plan = plan_of(statement)
        limit, offset = value_of(statement._limit_clause), value_of(statement._offset_clause) or 0
        upto = None if limit is None else limit + offset
        asking = self._asking(
            plan, statement, params, upto=upto, cap=max_rows + 1, whole=shards is None and tenants is None, deadline_s=deadline_s
        )
        (self._ask_at_once(asking, routes) if snapshot else self._ask_all(asking, routes))
        self._judge(asking, on_error)
        oids, kept = merged(plan, statement, asking.answers, limit=limit, offset=offset, max_rows=max_rows)
        made, of = colour.in_greenlet(partial(finished, plan, statement, oids, kept, guide=self._router))
        return FanOutResult(made, of, asking.failures)

    def scalar(self, statement: Any, reduce: Callable[[list[Any]], Any] | None = None, **options: Any) -> Any:
        """See ``fan_out_scalar`` of the facade."""
        if reduce is None or _is_same(reduce, statement):
            (value,) = (self.rows(statement, **options)).one()
            return value
        return reduce([value for value in (self.each(statement, **options)).values() if value is not None])

    def each(
        self,
        statement: Any,
        params: Mapping[str, Any] | None = None,
        *,
        shards: Iterable[int] | None = None,
        tenants: Iterable[TenantKey] | None = None,
        deadline_s: float = DEADLINE_S,
    ) -> dict[int, Any]:
        """The one value that *statement* has in each shard, by the shard's number."""
        routes, statement = self._aim(statement, shards, tenants)
        plan = each_plan(statement)
        asking = self._asking(plan, statement, params, upto=None, cap=None, whole=False, deadline_s=deadline_s)
        self._ask_all(asking, routes)
        self._judge(asking, "raise")
        oids, kept = merged(plan, statement, asking.answers, limit=None, offset=0, max_rows=MAX_ROWS)
        made, of = finished(plan, statement, oids, kept, guide=self._router)
        if len(set(of)) != len(of):
            raise FanOutError("the statement gave more than one row in a shard")
        return {shard: row[0] for shard, row in zip(of, made, strict=True) if shard is not None}

    def close(self) -> None:
        """Close idle connections."""
        for connection in self._idle.clear():
            connection.close()

    def _aim(self, statement: Any, shards: Iterable[int] | None, tenants: Iterable[TenantKey] | None) -> tuple[list[Route], Any]:
        """The shards to ask, and *statement* with the filter of *tenants*."""
        known = self._router.map
        chosen = set(known.placements) if shards is None else set(shards)
        if tenants is not None:
            tenants = list(tenants)
            chosen &= {known.shard_of(tenant) for tenant in tenants}
            statement = of_tenants(statement, tenants)
        return [known.route(shard) for shard in sorted(chosen)], statement

    @staticmethod
    def _asking(
        plan: Plan,
        statement: Any,
        params: Mapping[str, Any] | None,
        *,
        upto: int | None,
        cap: int | None,
        whole: bool,
        deadline_s: float,
    ) -> Asking:
        before, after = plan.around(upto, cap=cap)
        branch, values = plan.bind(statement, dict(params) if params else None)
        return Asking(
            before=before, branch=branch, after=after, values=values, whole=whole, deadline=time.monotonic() + deadline_s
        )

    def _ask_all(self, asking: Asking, routes: Sequence[Route]) -> None:
        """Ask every shard of *routes*, and those that moved once more where they went, until each answered or failed."""
        while routes:
            known = self._router.map
            calls: list[Callable[[], Any]] = [
                partial(self._ask_server, asking, known.server(name), chunks)
                for name, chunks in chunks_of(routes, of=len(known.placements)).items()
            ]
            colour.gather(calls, timeout_s=asking.left_s, cut=asking.cut)
            moved, asking.moved = asking.moved, []
            routes = self._onward(asking, moved) if moved else []

    def _ask_at_once(self, asking: Asking, routes: Sequence[Route]) -> None:
        """Ask on views of all servers between which no cross-shard transaction was being committed.

        A commit is decided in the catalog before any server carries it out. So if none was under way before the first view
        was taken, and none was decided until the last one was, each is in all of the views or in none.
        """
        names = sorted({route.server for route in routes})
        while True:
            moment = colour.in_thread(self._decisions.moment)
            try:
                if moment is not None:
                    views: list[Callable[[], Any]] = [partial(self._view, asking, self._router.map.server(n)) for n in names]
                    colour.gather(views, timeout_s=asking.left_s, cut=asking.cut)
                    if asking.failures or not colour.in_thread(self._decisions.decided_since, moment):
                        routes = [route for route in routes if route.shard not in asking.failures]
                        self._ask_all(asking, routes)
                        return
            finally:
                self._let_go(asking)
            if asking.left_s < PAUSE_S:
                raise NoSnapshotError(
                    "transactions over several shards were being committed all the time until the deadline: no view of all "
                    "shards was consistent. Try again, or allow more time (deadline_s)"
                )
            time.sleep(PAUSE_S)

    def _view(self, asking: Asking, server: Server) -> None:
        """A transaction on *server* that sees what is committed now."""
        try:
            connection, _ = self._connection(server)
            asking.busy.add(connection)
            asking.held[server.name] = connection
            connection.execute(view())
        except (ShardKitError, DriverError, OSError) as exc:
            asking.fail((self._router.map.route(shard) for shard in self._router.map.shards_on(server.name)), exc)

    def _let_go(self, asking: Asking) -> None:
        for name, connection in asking.held.items():
            asking.busy.discard(connection)
            try:
                connection.execute(b"ROLLBACK")
                self._idle.give(self._router.map.server(name), connection)
            except DriverError:
                connection.close()
        asking.held.clear()

    def _ask_server(self, asking: Asking, server: Server, chunks: Sequence[Chunk]) -> None:
        """Ask one server for all its chunks; whatever happens becomes an answer, a failure or a shard to ask again."""
        waiting = list(chunks)
        if asking.held:
            try:
                for chunk in waiting:
                    asking.answers += self._fly(asking, asking.held[server.name], [chunk])
            except (DriverError, KeyError) as exc:
                asking.fail((route for chunk in waiting for route in chunk), exc)
            return
        gate = self._gates.setdefault(server.name, colour.Gate(self._settings.fan_out_connections))
        if not gate.enter(max(asking.left_s, 0)):
            busy = PoolTimeoutError(f"all fan-out connections to server {server.name!r} stayed busy; nothing was sent")
            asking.fail((route for chunk in waiting for route in chunk), busy)
            return
        try:
            while waiting:
                connection, fresh = self._connection(server)
                asking.busy.add(connection)
                try:
                    self._ask_chunks(asking, connection, waiting)
                except DriverError as exc:
                    if fresh or asking.left_s <= 0:
                        raise ServerDownError(f"the connection to server {server.name!r} broke: {exc}") from exc
                finally:
                    asking.busy.discard(connection)
                    if connection.closed:
                        connection.close()
                    else:
                        self._idle.give(server, connection)
        except (ShardKitError, OSError) as exc:
            asking.fail((route for chunk in waiting for route in chunk), exc)
        finally:
            gate.leave()

    def _connection(self, server: Server) -> tuple[Any, bool]:
        """A connection to *server*, and whether it was made just now (one that waited may have died meanwhile)."""
        waiting = self._idle.take(server, now=time.monotonic())
        if waiting is not None:
            return waiting, False
        made = colour.connect_scatter(server, self._settings, cluster_id=self._router.cluster_id)
        made.born = time.monotonic()
        return made, True

    def _ask_chunks(self, asking: Asking, connection: Any, waiting: list[Chunk]) -> None:
        """Ask for the chunks in *waiting*, and take off it what is settled. Raises DriverError if the connection is lost."""
        while waiting:
            flight = waiting[: 1 if connection.pooled else IN_ONE_FLIGHT]
            try:
                asking.answers += self._fly(asking, connection, flight)
            except DriverError as exc:
                if connection.closed:
                    raise
                if len(flight) > 1:
                    for chunk in flight:
                        self._ask_chunks(asking, connection, [chunk])
                else:
                    self._sort_out(asking, connection, flight[0], exc)
            del waiting[: len(flight)]

    def _fly(self, asking: Asking, connection: Any, flight: Sequence[Chunk]) -> list[Answer]:
        """Answers of the chunks of one flight, which make one round trip together."""
        texts = [asking.text(chunk) for chunk in flight]
        prepare = True if asking.whole and not connection.pooled else None
        if connection.pooled and not asking.held:
            with connection.transaction():
                connection.execute(local_settings())
                cursors = [connection.execute(texts[0], asking.values)]
                rows = [cursors[0].fetchall()]
        elif len(texts) == 1:
            cursors = [connection.execute(texts[0], asking.values, prepare=prepare)]
            rows = [cursors[0].fetchall()]
        else:
            with connection.pipeline():
                cursors = [connection.execute(text, asking.values, prepare=prepare) for text in texts]
            rows = [cursor.fetchall() for cursor in cursors]
        return [
            Answer(
                tuple(route.shard for route in chunk),
                tuple(column.type_code for column in cursor.description),
                found,
                connection.code_points,
            )
            for chunk, cursor, found in zip(flight, cursors, rows, strict=True)
        ]

    def _sort_out(self, asking: Asking, connection: Any, chunk: Chunk, error: Any) -> None:
        """A chunk failed as a whole: find the shards that moved, and what each of the others says alone."""
        if error.sqlstate in FENCE:
            cursor = connection.execute(missing_schemas(), [[route.schema for route in chunk]])
            gone = {row[0] for row in cursor.fetchall()}
            if gone:
                asking.moved += [route for route in chunk if route.schema in gone]
                self._ask_chunks(asking, connection, [rest] if (rest := _without(chunk, gone)) else [])
                return
        if len(chunk) == 1:
            asking.fail(chunk, error)
            return
        for route in chunk:
            self._ask_chunks(asking, connection, [(route,)])

    def _onward(self, asking: Asking, moved: Sequence[Route]) -> list[Route]:
        """Where *moved* shards are now; waits for the map, bounded."""
        known = {route.shard: route.epoch for route in moved}

        def everywhere(found: ShardMap) -> bool:
            return all(found.placement(shard).epoch != epoch for shard, epoch in known.items())

        timeout_s = max(0.0, min(self._settings.move_wait_s, asking.left_s))
        found = colour.in_thread(partial(self._router.watch.wait_for, everywhere, timeout_s=timeout_s))
        if found is not None:
            return [found.route(shard) for shard in known]
        found = self._router.map
        still = [route for route in moved if found.placement(route.shard).epoch == route.epoch]
        asking.fail(still, ShardMovedError("the shard is being moved, and the map does not say yet where it went"))
        return [found.route(route.shard) for route in moved if route not in still]

    @staticmethod
    def _judge(asking: Asking, on_error: OnError) -> None:
        """Raise FanOutError if shards failed and a part was not asked for."""
        if not asking.failures or (on_error == "partial" and asking.answers):
            return
        said: dict[str, list[int]] = {}
        for shard, error in sorted(asking.failures.items()):
            said.setdefault(str(error).strip().partition("\n")[0], []).append(shard)
        parts = [f"shards {', '.join(map(str, who[:6]))}{' ...' if len(who) > 6 else ''} ({len(who)}): {what}" for what, who in said.items()]
        first = next(iter(asking.failures.values()))
        raise FanOutError(
            f"{len(asking.failures)} shards did not answer, so there is no answer. {'; '.join(parts[:5])}", failures=asking.failures
        ) from first


def _is_same(reduce: Callable[[list[Any]], Any], statement: Any) -> bool:
    """Whether *reduce* is what the statement's merge does by itself, in fewer and smaller messages."""
    names = _SAME.get(reduce)
    if names is None:
        return False
    try:
        outputs = plan_of(statement).outputs
    except FanOutRefusedError:
        return False
    return len(outputs) == 1 and isinstance(outputs[0], Aggregate) and outputs[0].name in names


def _without(chunk: Chunk, gone: set[str]) -> Chunk:
    return tuple(route for route in chunk if route.schema not in gone)
