"""Measures a move's write stall from outside: takes a writer's lock again and again, as a client would, following the shard."""

from __future__ import annotations

import threading
import time

import psycopg
from psycopg import errors, sql

from shardkit.move.ends import End

PAUSE_S = 0.002


class Probe:
    """A thread that asks for a writer's lock on one table. ``worst_ms`` is the longest it had to wait, also across the move."""

    def __init__(self, source: End, target: End, *, schema: str, next_schema: str, table: str) -> None:
        self._ask = [
            (end, sql.SQL("BEGIN; LOCK TABLE {} IN ROW EXCLUSIVE MODE; ROLLBACK").format(sql.Identifier(name, table)))
            for end, name in ((source, schema), (target, next_schema))
        ]
        self.worst_ms = 0.0
        self._flipped = threading.Event()
        self._stop = threading.Event()
        for end, _ in self._ask:
            end.on("probe")
        self._thread = threading.Thread(target=self._run, name="shardkit-probe", daemon=True)
        self._thread.start()

    def finish(self, *, flipped: bool) -> float:
        """End it; if the move *flipped*, wait until the probe has come through on the new side. Milliseconds."""
        (self._flipped if flipped else self._stop).set()
        self._thread.join(timeout=5)
        self._stop.set()
        for end, _ in self._ask:
            end.close("probe")
        return self.worst_ms

    def _run(self) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            arrived = self._try(0) or self._at_target()
            self.worst_ms = max(self.worst_ms, (time.monotonic() - began) * 1000)
            if arrived == "target":
                return
            self._stop.wait(PAUSE_S)

    def _at_target(self) -> str:
        while not self._stop.is_set():
            if self._flipped.is_set() and self._try(1):
                return "target"
            self._stop.wait(0.0005)
        return "stopped"

    def _try(self, which: int) -> bool:
        end, ask = self._ask[which]
        try:
            end.on("probe").execute(ask)
        except (errors.UndefinedTable, errors.InvalidSchemaName):
            end.on("probe").execute("ROLLBACK")
            return False
        except psycopg.Error:
            self._stop.set()
        return True
