"""Ends transactions over several shards whose coordinator is gone: by the record, or, without one, by rolling back.

Who rolls back records that first. So a coordinator that was only slow finds its transaction decided, and both do the same.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from shardkit.catalog.decisions import Decisions
from shardkit.core.shardmap import Server, ShardMap
from shardkit.db.connect import connect, said
from shardkit.db.two_phase import Prepared, end_prepared, prepared
from shardkit.errors import ServerError, ShardKitError
from shardkit.settings import Settings

log = logging.getLogger("shardkit.transactions")
INTERVAL_S = 5.0


class InDoubt(NamedTuple):
    """A part of a transaction that waits on a server. ``outcome`` is what was decided, None if nothing was yet."""

    server: str
    txn: UUID
    part: Prepared
    outcome: str | None


def in_doubt(settings: Settings, shardmap: ShardMap, *, servers: Iterable[str] | None = None) -> list[InDoubt]:
    """What waits for its second phase on *servers* (all), with its age and locks. Raises ServerDownError."""
    found = {server.name: _prepared(server, settings, shardmap) for server in _servers(shardmap, servers)}
    return list(outcomes(settings, found))


def outcomes(settings: Settings, waiting: Mapping[str, Sequence[Prepared]]) -> Iterator[InDoubt]:
    """The parts that wait on each server, with what was decided about them."""
    if not any(waiting.values()):
        return
    decisions = Decisions(settings)
    try:
        for server, parts in waiting.items():
            for part in parts:
                txn = UUID(part.gid.txn)
                yield InDoubt(server, txn, part, decisions.outcome(txn))
    finally:
        decisions.close()


def resolve(settings: Settings, shardmap: ShardMap, decisions: Decisions | None = None) -> list[InDoubt]:
    """End every part whose transaction was decided or whose time is over; gives those that were ended here.

    A server that does not answer, or refuses to end a part, is left for the next time, and said in the log.
    """
    own = decisions or Decisions(settings)
    ended: list[InDoubt] = []
    try:
        unfinished = own.unfinished()
        reached = set()
        for server in shardmap.servers.values():
            try:
                _resolve_on(server, settings, shardmap, own, ended)
                reached.add(server.name)
            except ShardKitError as exc:
                log.warning("transactions on server %r wait for the next time: %s", server.name, exc)
        for txn, servers in unfinished:
            if reached.issuperset(servers):
                own.finish(txn)
    finally:
        if decisions is None:
            own.close()
    return ended


def _resolve_on(server: Server, settings: Settings, shardmap: ShardMap, decisions: Decisions, ended: list[InDoubt]) -> None:
    """Add to *ended* what is ended on *server*. What kept one from being ended is raised once the others have been tried."""
    refused = None
    with connect(server, settings, cluster_id=shardmap.cluster_id) as connection:
        for part in _waiting(connection, server, shardmap):
            txn = UUID(part.gid.txn)
            outcome = decisions.outcome(txn)
            if outcome is None and part.overdue:
                outcome = decisions.decide(txn, "abort", [server.name], within_s=0)
            if outcome is None:
                continue
            try:
                with said(f"server {server.name!r}", then=f"{part.name} was not ended"):
                    done = end_prepared(connection, part.name, commit=outcome == "commit")
            except ServerError as exc:
                refused = exc
                continue
            if done:
                log.warning("transaction %s: part %s on server %r was ended here: %s", txn, part.gid.part, server.name, outcome)
                ended.append(InDoubt(server.name, txn, part, outcome))
    if refused is not None:
        raise refused


def _prepared(server: Server, settings: Settings, shardmap: ShardMap) -> list[Prepared]:
    with connect(server, settings, cluster_id=shardmap.cluster_id) as connection:
        return _waiting(connection, server, shardmap)


def _waiting(connection: Any, server: Server, shardmap: ShardMap) -> list[Prepared]:
    with said(f"server {server.name!r}", then="nothing was changed"):
        return prepared(connection, cluster=shardmap.cluster_id.hex)


def _servers(shardmap: ShardMap, names: Iterable[str] | None) -> list[Server]:
    return list(shardmap.servers.values()) if names is None else [shardmap.server(name) for name in names]


class BackgroundResolver:
    """A thread that resolves every few seconds, from the first transaction over several shards of this process on."""

    def __init__(self, settings: Settings, current: Callable[[], ShardMap]) -> None:
        self._settings, self._current = settings, current
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, if it has not begun."""
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="shardkit-resolver", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """End, soon."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=INTERVAL_S)

    def _run(self) -> None:
        while not self._stop.wait(INTERVAL_S):
            try:
                resolve(self._settings, self._current())
            except Exception as exc:  # noqa: BLE001  # the next round tries again
                log.warning("transactions could not be resolved: %s", exc)
