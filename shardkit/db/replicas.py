"""Knows how far each replica is: while somebody reads from replicas, their positions and the primary's are looked at.

One thread for each database that is looked at, so that one that hangs holds up nobody; it ends when nobody has asked for a
while. Readers never wait for it: they use what is known, and without fresh knowledge they read from the primary.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import psycopg

from shardkit.core.lag import Anchor, Position, Requirement, lsn_number, requirement
from shardkit.core.shardmap import Server
from shardkit.db.connect import connect
from shardkit.db.forked import in_forked_child
from shardkit.db.lineage import Lineage
from shardkit.errors import ShardKitError
from shardkit.settings import Settings

log = logging.getLogger("shardkit.replicas")
IDLE_S: Final = 30.0
KEPT: Final = 1024
_SILENT_AFTER: Final = 5  # checks without an answer: then a replica counts as down
_PRIMARY: Final = "SELECT left(pg_walfile_name(pg_current_wal_insert_lsn()), 8), pg_current_wal_insert_lsn()::text"
_REPLICA: Final = "SELECT timeline, lsn::text FROM shardkit.replica_position()"


@dataclass(frozen=True, slots=True)
class Choice:
    """A replica that may serve a read, and what it must have replayed."""

    dsn: str
    requirement: Requirement


class ReplicaWatch:
    """What is known of the replicas of one process' servers."""

    def __init__(self, settings: Settings, *, cluster_id: UUID, lineage: Lineage) -> None:
        self._settings, self._cluster_id, self._lineage = settings, cluster_id, lineage
        self._turn = itertools.count()
        self._reset()
        in_forked_child(self._after_fork)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads: dict[tuple[Server, str | None], threading.Thread] = {}
        self._wanted: dict[Server, float] = {}
        self.anchors: dict[Server, tuple[Anchor, ...]] = {}
        self.positions: dict[tuple[Server, str], tuple[float, Position]] = {}

    def choose(
        self,
        server: Server,
        *,
        max_lag_s: float,
        written_s: float | None,
        after: Position | None,
        only: str | None = None,
    ) -> Choice | None:
        """A replica of *server* (*only* this one, if given) for a read that may miss at most the last *max_lag_s*.

        None: read from the primary. No I/O.
        """
        now = time.monotonic()
        self._want(server, now)
        anchors = self.anchors.get(server)
        if not anchors or anchors[-1].timeline < self._lineage.highest(server):
            return None
        wanted = requirement(anchors, now_s=now, max_lag_s=max_lag_s, written_s=written_s, after=after)
        if wanted is None:
            return None
        turn = next(self._turn) % len(server.replicas)
        for dsn in (*server.replicas[turn:], *server.replicas[:turn]) if only is None else (only,):
            seen_s, position = self.positions.get((server, dsn), (0.0, Position(0, 0)))
            if (
                seen_s >= now - _SILENT_AFTER * self._settings.replica_check_s
                and position.timeline == wanted.timeline
                and position.lsn >= wanted.floor
            ):
                return Choice(dsn, wanted)
        return None

    def lost(self, server: Server, dsn: str) -> None:
        """A replica could not be reached: not again before it answers."""
        self.positions.pop((server, dsn), None)

    def close(self) -> None:
        """Stop looking."""
        self._stop.set()
        for thread in list(self._threads.values()):
            if thread is not threading.current_thread():
                thread.join(timeout=self._settings.connect_timeout_s + 1)

    def _after_fork(self) -> None:
        """The threads are not here, and what they knew is the parent's."""
        self._reset()

    def _want(self, server: Server, now: float) -> None:
        before = self._wanted.get(server)
        self._wanted[server] = now
        if before is not None and now - before < IDLE_S / 2:
            return
        with self._lock:
            for dsn in (None, *server.replicas):
                running = self._threads.get((server, dsn))
                if (running is None or not running.is_alive()) and not self._stop.is_set():
                    look = self._look_at_primary(server) if dsn is None else self._look_at_replica(server, dsn)
                    thread = threading.Thread(
                        target=self._keep_looking, args=(server, dsn, look), name="shardkit-replica", daemon=True
                    )
                    self._threads[server, dsn] = thread
                    thread.start()

    def _keep_looking(self, server: Server, dsn: str | None, look: Callable[[Any], None]) -> None:
        connection: Any = None
        stop = self._stop
        try:
            while not stop.is_set() and time.monotonic() - self._wanted[server] < IDLE_S:
                try:
                    if connection is None or connection.closed:
                        connection = connect(
                            server, self._settings, cluster_id=self._cluster_id, replica=dsn, lineage=self._lineage
                        )
                        connection.call_timeout_s = max(1.0, _SILENT_AFTER * self._settings.replica_check_s)
                    look(connection)
                except (ShardKitError, psycopg.Error) as exc:
                    log.info("a replica of server %r, or its primary, could not be asked: %s", server.name, exc)
                    if dsn is not None:
                        self.lost(server, dsn)
                    if connection is not None:
                        connection.close()
                stop.wait(self._settings.replica_check_s)
        finally:
            if connection is not None:
                with suppress(psycopg.Error):
                    connection.close()

    def _look_at_primary(self, server: Server) -> Callable[[Any], None]:
        def look(connection: Any) -> None:
            if int(connection.timeline, 16) < self._lineage.highest(server):
                connection.close()  # superseded: find the living one
                return
            at_s = time.monotonic()
            timeline, lsn = connection.execute(_PRIMARY).fetchone()
            new = Anchor(at_s, int(timeline, 16), lsn_number(lsn))
            known = self.anchors.get(server, ())[1 - KEPT :]
            self.anchors[server] = (*known, new) if known and known[-1].timeline == new.timeline else (new,)

        return look

    def _look_at_replica(self, server: Server, dsn: str) -> Callable[[Any], None]:
        def look(connection: Any) -> None:
            row = connection.execute(_REPLICA).fetchone()
            if row is None:
                self.lost(server, dsn)
            else:
                self.positions[server, dsn] = time.monotonic(), Position(row[0], lsn_number(row[1]))

        return look
