# Generated from shardkit/_async/fanout.py by tests/generate_sync.py: change that file instead.
"""One statement over many shards: one message per server and chunk of schemas, servers in parallel, answers merged.

A chunk's statement unites its schemas; a wide one costs planning once, and is prepared on a connection of its own. A shard
that moves meanwhile is asked again where it went, it alone. What did not answer is an error, never a gap.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Literal

from shardkit._sync import colour
from shardkit._sync.asking import Aim, Asking, Servers
from shardkit._sync.stream import RowStream
from shardkit.catalog.decisions import Decisions
from shardkit.catalog.router import Router
from shardkit.core.hashing import TenantKey
from shardkit.core.shardmap import Route, ShardMap
from shardkit.db.deadline import left
from shardkit.errors import FanOutError, FanOutRefusedError, SettingsError
from shardkit.orm.fancheck import value_of
from shardkit.orm.fanload import FanOutResult, finished, merged
from shardkit.orm.fanplan import Aggregate, Plan, given_to
from shardkit.orm.fanread import each_plan, plan_of
from shardkit.orm.fanwatch import Watch, unwatched
from shardkit.orm.tenancy import of_tenants
from shardkit.settings import Settings

DEADLINE_S = 30.0
MAX_ROWS = 1_000_000

OnError = Literal["raise", "partial"]
_SAME: dict[Callable[..., Any], tuple[str, ...]] = {sum: ("count", "sum"), min: ("min",), max: ("max",)}


class FanOut:
    """Fans statements out over the servers of a router's map."""

    def __init__(self, router: Router, settings: Settings, decisions: Decisions) -> None:
        self._router = router
        self._servers = Servers(router, settings, decisions)
        self.watch: Watch = unwatched

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
        aim, statement = self._aim(statement, shards, tenants)
        plan = plan_of(statement)
        limit, offset = _window(statement, params)
        upto = None if limit is None else limit + offset
        asking = self._asking(
            aim,
            plan,
            statement,
            params,
            upto=upto,
            cap=max_rows + 1,
            whole=shards is None and tenants is None,
            deadline_s=deadline_s,
        )
        ask = self._servers.ask_at_once if snapshot else self._servers.ask
        with self.watch(aim.routes) as asking.message:
            ask(asking, aim.routes)
            self._judge(asking, on_error)
            oids, kept = merged(plan, statement, params, asking.answers, limit=limit, offset=offset, max_rows=max_rows)
            made, of = colour.in_greenlet(partial(finished, plan, statement, oids, kept, guide=self._router))
        return FanOutResult(made, of, asking.failures)

    def scalar(self, statement: Any, reduce: Callable[[list[Any]], Any] | None = None, **options: Any) -> Any:
        """See ``fan_out_scalar`` of the facade."""
        if reduce is None or _is_same(reduce, statement):
            (value,) = (self.rows(statement, **options)).one()
            return value
        return reduce([value for value in (self.each(statement, **options)).values() if value is not None])

    def stream(
        self,
        statement: Any,
        params: Mapping[str, Any] | None = None,
        *,
        shards: Iterable[int] | None = None,
        tenants: Iterable[TenantKey] | None = None,
        batch: int = 1000,
        deadline_s: float = DEADLINE_S,
    ) -> RowStream:
        """See ``fan_out_stream`` of the facade."""
        aim, statement = self._aim(statement, shards, tenants)
        plan = plan_of(statement)
        if plan.grouped or plan.distinct:
            raise FanOutRefusedError("groups and distinct rows have to be merged as a whole: use fan_out() for them")
        limit, offset = _window(statement, params)
        upto = None if limit is None else limit + offset
        asking = self._asking(aim, plan, statement, params, upto=upto, cap=None, whole=False, deadline_s=deadline_s)
        return RowStream(
            self._servers,
            plan,
            statement,
            asking,
            aim.routes,
            limit=limit,
            offset=offset,
            batch=batch,
            deadline_s=deadline_s,
            watch=self.watch,
        )

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
        aim, statement = self._aim(statement, shards, tenants)
        plan = each_plan(statement)
        asking = self._asking(aim, plan, statement, params, upto=None, cap=None, whole=False, deadline_s=deadline_s)
        with self.watch(aim.routes) as asking.message:
            self._servers.ask(asking, aim.routes)
            self._judge(asking, "raise")
        oids, kept = merged(plan, statement, params, asking.answers, limit=None, offset=0, max_rows=MAX_ROWS)
        made, of = finished(plan, statement, oids, kept, guide=self._router)
        if len(set(of)) != len(of):
            raise FanOutError("the statement gave more than one row in a shard")
        return {shard: row[0] for shard, row in zip(of, made, strict=True) if shard is not None}

    def close(self) -> None:
        """Close idle connections."""
        self._servers.close()

    def _aim(self, statement: Any, shards: Iterable[int] | None, tenants: Iterable[TenantKey] | None) -> tuple[Aim, Any]:
        """Which shards to ask, and *statement* with the filter of *tenants*."""
        named = None if shards is None else set(shards)
        whose = None if tenants is None else list(tenants)

        def choose(known: ShardMap) -> list[Route]:
            chosen = set(known.placements) if named is None else set(named)
            if whose is not None:
                chosen &= {known.shard_of(tenant) for tenant in whose}
            return [known.route(shard) for shard in sorted(chosen)]

        return Aim(self._router.map, choose), statement if whose is None else of_tenants(statement, whose)

    @staticmethod
    def _asking(
        aim: Aim,
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
        branch, values = plan.bind(statement, params)
        return Asking(
            aim=aim,
            before=before,
            branch=branch,
            after=after,
            values=values,
            whole=whole,
            deadline=time.monotonic() + left(deadline_s),
        )

    @staticmethod
    def _judge(asking: Asking, on_error: OnError) -> None:
        """Raise FanOutError if shards failed and a part was not asked for."""
        if not asking.failures or (on_error == "partial" and asking.answers):
            return
        said: dict[str, list[int]] = {}
        for shard, error in sorted(asking.failures.items()):
            said.setdefault(str(error).strip().partition("\n")[0], []).append(shard)
        parts = [
            f"shards {', '.join(map(str, who[:6]))}{' ...' if len(who) > 6 else ''} ({len(who)}): {what}"
            for what, who in said.items()
        ]
        first = next(iter(asking.failures.values()))
        raise FanOutError(
            f"{len(asking.failures)} shards did not answer, so there is no answer. {'; '.join(parts[:5])}",
            failures=asking.failures,
        ) from first


def _window(statement: Any, params: Mapping[str, Any] | None) -> tuple[int | None, int]:
    """LIMIT and OFFSET of *statement*."""
    given = given_to(statement, params)
    return value_of(statement._limit_clause, given), value_of(statement._offset_clause, given) or 0


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
