"""Many moves after one plan: which shards should go where, and carrying them there a few at a time."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, Final, Literal

from shardkit.catalog.changes import change_server
from shardkit.catalog.journal import Move, moves
from shardkit.catalog.loads import lately
from shardkit.catalog.rows import load_map
from shardkit.core.moving import Step
from shardkit.core.names import schema_name
from shardkit.core.placement import Plan, PlannedMove, plan
from shardkit.core.shardmap import ServerState, ShardMap
from shardkit.db.connect import connect_admin, server_url
from shardkit.errors import MoveInterruptedError, PlacementError, ShardKitError
from shardkit.move.options import MoveOptions, Progress, Report, silent
from shardkit.move.run import begin, go_on
from shardkit.settings import Settings
from shardkit.sql import statements

By = Literal["count", "bytes", "load"]
Done = Callable[["PlannedMove | Move", "Move | ShardKitError"], None]
_BEFORE_FENCE: Final = {"copy", "stream", "verify", "fence"}


def make_plan(settings: Settings, *, by: By = "count", without: str | None = None) -> Plan:
    """The moves that would make servers even, by number of shards, by bytes, or by units of work in the last hour.

    A shard whose move has not ended stays where that leads. *without*: that empty the server so named. Raises PlacementError
    for no server, or where nobody has told of units of work.
    """
    with connect_admin(settings.catalog_url, settings) as catalog:
        shardmap = load_map(catalog)
        fixed = fixed_places(moves(catalog))
        units = units_of_work(catalog, shardmap) if by == "load" else None
    weights = {
        name: server.weight
        for name, server in shardmap.servers.items()
        if server.state is ServerState.ACTIVE and name != without
    }
    current: dict[int, str | None] = {
        shard: place.server
        for shard, place in shardmap.placements.items()
        if shard not in fixed and shardmap.server(place.server).state is not ServerState.DOWN
    }
    staying = {shard: server for shard, server in fixed.items() if shard in shardmap.placements and server in weights}
    if without is not None:
        shardmap.server(without)
    loads = sizes(settings, shardmap) if by == "bytes" else units
    return plan({**current, **staying}, weights, loads=loads, fixed=staying.keys())


def fixed_places(unended: Sequence[Move]) -> dict[int, str]:
    """Where the shards are, or are on their way to, that cannot be moved because of *unended* moves (the newest first)."""
    found: dict[int, str] = {}
    for move in reversed(unended):
        found[move.shard] = move.target if move.tenant is None else move.source
        if move.into_shard is not None:
            found[move.into_shard] = move.target
    return found


def waiting(settings: Settings, *, without: str | None = None) -> list[Move]:
    """Moves that have not ended and keep a shard from where it should be: at their end, and off *without*; oldest first."""
    with connect_admin(settings.catalog_url, settings) as catalog:
        placements, unended = load_map(catalog).placements, moves(catalog)
    ends = fixed_places(unended)
    astray = {shard for shard, at in placements.items() if at.server == without or at.server != ends.get(shard, at.server)}
    return [move for move in reversed(unended) if not astray.isdisjoint((move.shard, move.into_shard))]


def units_of_work(catalog: Any, shardmap: ShardMap) -> dict[int, float]:
    """Units of work of each shard in the last hour, as programs have told. Raises PlacementError where none has."""
    found = lately(catalog, tenant_type=shardmap.tenant_type).shards
    if not any(found.values()):
        raise PlacementError(
            "no program has told of its load in the last hour, so there is nothing to plan by: let programs run with this "
            "release (each tells every 30 s, setting load_interval_s; count_loads = false switches it off), or plan --by bytes"
        )
    return {shard: float(found.get(shard, 0)) for shard in shardmap.placements}


def sizes(settings: Settings, shardmap: ShardMap) -> dict[int, float]:
    """Bytes of each shard, asked of its server."""
    found: dict[int, float] = {}
    for name, server in shardmap.servers.items():
        if server.state is ServerState.DOWN:
            continue
        names = {schema_name(s, shardmap.placement(s).epoch): s for s in shardmap.shards_on(name)}
        with connect_admin(server_url(server, settings), settings, name=f"server {name!r}") as connection:
            for schema, size in connection.execute(statements("server")["shard_schemas"]):
                if schema in names:
                    found[names[schema]] = float(size)
    return found


def drain(settings: Settings, server: str) -> None:
    """Let *server* get no more shards; moving its shards away is a rebalance after that."""
    with connect_admin(settings.catalog_url, settings) as catalog:
        change_server(catalog, server, state=ServerState.DRAINING)


def carry_out(
    settings: Settings,
    planned_moves: tuple[PlannedMove, ...],
    *,
    parallel: int = 1,
    options: MoveOptions | None = None,
    report: Report = silent,
    done: Done = lambda _planned, _outcome: None,
) -> tuple[int, list[ShardKitError]]:
    """Move what was planned, *parallel* at a time, no server in two copies at once where that can be helped.

    A move that fails does not stop the others. Gives how many were done, and the errors. What ends it from outside (Ctrl-C)
    stops moves whose fence is not committed where they are, waits for the others, and is raised.
    """
    options = options or MoveOptions(soak=False)
    stopping = threading.Event()

    def heard(progress: Progress) -> None:
        report(progress)
        if stopping.is_set() and progress.step in _BEFORE_FENCE:
            raise MoveInterruptedError(
                f"move {progress.move_id} was stopped; nothing is lost. `shardkit moves resume {progress.move_id}` goes on"
            )

    left, failed, finished = list(planned_moves), [], 0
    busy: Counter[str] = Counter()
    with ThreadPoolExecutor(parallel) as pool:
        running: dict[Future[Move], PlannedMove] = {}
        try:
            while left or running:
                while left and len(running) < parallel:
                    planned = min(left, key=lambda one: sum(busy[name] for name in _servers(one)))
                    left.remove(planned)
                    busy.update(_servers(planned))
                    running[pool.submit(_one, settings, planned, options, heard)] = planned
                ended, _ = wait(running, timeout=1.0, return_when=FIRST_COMPLETED)
                for future in ended:
                    planned = running.pop(future)
                    busy.subtract(_servers(planned))
                    try:
                        done(planned, future.result())
                        finished += 1
                    except ShardKitError as exc:
                        failed.append(exc)
                        done(planned, exc)
        except BaseException:
            stopping.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return finished, failed


def to_finish(settings: Settings) -> list[Move]:
    """Moves that soak, or were stopped while they were finished, the oldest first; none with a rollback under way."""
    with connect_admin(settings.catalog_url, settings) as catalog:
        found = moves(catalog)
    going_back = {move.of_move for move in found}
    ended = [move for move in found if move.step is Step.FINISH or (move.step is Step.SOAK and move.id not in going_back)]
    return sorted(ended, key=lambda move: move.id)


def finish_all(
    settings: Settings,
    soaking: Sequence[Move],
    *,
    options: MoveOptions | None = None,
    report: Report = silent,
    done: Done = lambda _planned, _outcome: None,
) -> tuple[int, list[ShardKitError]]:
    """Finish the moves *soaking*, one after another. One that fails does not stop the others, and can be finished again.

    Gives how many were done, and the errors.
    """
    failed: list[ShardKitError] = []
    for move in soaking:
        try:
            done(move, go_on(settings, move.id, "finish", options=options, report=report))
        except ShardKitError as exc:
            failed.append(exc)
            done(move, exc)
    return len(soaking) - len(failed), failed


def _one(settings: Settings, planned: PlannedMove, options: MoveOptions, report: Report) -> Move:
    move = begin(settings, planned.shard, planned.target, options=options)
    return go_on(settings, move.id, options=options, report=report)


def _servers(planned: PlannedMove) -> list[str]:
    return [name for name in (planned.source, planned.target) if name is not None]
