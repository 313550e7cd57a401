"""Follows a server's changes: which keys to compare again, how far the marks are, who writes where nobody may."""

from __future__ import annotations

import os
import select
import struct
import threading
import time
from collections.abc import Sequence
from typing import Any, Final

import psycopg
from psycopg import pq, sql

from shardkit.core.moving import Busy
from shardkit.errors import MoveInterruptedError, MoveRefusedError
from shardkit.move.ends import End, wait_for_answer
from shardkit.move.pgoutput import Changed, Committed, Emptied, Key, Marked, Reader
from shardkit.move.structure import Table

ANSWER_EVERY_S: Final = 1.0
ROWS, KEEPALIVE = ord("w"), ord("k")


class ChangeStream:
    """A thread that reads *publication* on *end* through a temporary slot, which goes with it.

    What was committed on *end* is in the stream, or is seen by every query from then on.
    """

    def __init__(self, end: End, *, slot: str, publication: str, tables: Sequence[Table], timeout_s: float) -> None:
        self._end = end
        self._reader = Reader({table.name: table.key for table in tables})
        self._state = threading.Condition()
        self._changed: dict[str, dict[Key, int]] = {}
        self._emptied: set[str] = set()
        self._mark = self._count = 0
        self._lsn = 0
        self._problem: BaseException | None = None
        self._stop = False
        self._woken, self._wake = os.pipe()
        self.foreign: dict[str, Key] = {}
        """Tables that somebody other than a subscription wrote to, each with a key as an example."""
        self._connection = end.connect(replication="database")
        try:
            self._begin(slot, publication, timeout_s)
        except BaseException:
            self._connection.close()
            os.close(self._wake)
            os.close(self._woken)
            raise
        self._thread = threading.Thread(target=self._run, name=f"shardkit-changes-{end.name}", daemon=True)
        self._thread.start()

    def _begin(self, slot: str, publication: str, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        made = wait_for_answer(
            self._connection,
            sql.SQL("CREATE_REPLICATION_SLOT {} TEMPORARY LOGICAL pgoutput (SNAPSHOT 'nothing')").format(sql.Identifier(slot)),
            timeout_s=timeout_s,
        )
        if made is None or not self._end.outlast(timeout_s=deadline - time.monotonic()):
            raise MoveRefusedError(
                f"server {self._end.name!r} has write transactions that have been open for {timeout_s:g} s, and a "
                "replication slot has to "
                "wait for all of them: end them, then resume"
            )
        result = self._connection.pgconn.exec_(
            sql.SQL("START_REPLICATION SLOT {} LOGICAL 0/0 (proto_version '1', publication_names {})")
            .format(sql.Identifier(slot), sql.Literal(sql.Identifier(publication).as_string(None)))
            .as_bytes(self._connection)
        )
        if result.status != pq.ExecStatus.COPY_BOTH:
            raise psycopg.errors.error_from_result(result)

    def take_changed(self) -> dict[str, dict[Key, int]]:
        """Keys changed since the last time, with the number of their last change."""
        with self._state:
            self._healthy()
            taken, self._changed = self._changed, {}
            return taken

    def take_emptied(self) -> set[str]:
        """Tables truncated since the last time."""
        with self._state:
            taken, self._emptied = self._emptied, set()
            return taken

    def wait_for_mark(self, n: int, *, deadline: float) -> None:
        """Until mark *n* has passed, and so everything committed before it. Raises Busy after *deadline*."""
        with self._state:
            while self._mark < n:
                self._healthy()
                left = deadline - time.monotonic()
                if left <= 0:
                    raise Busy
                self._state.wait(min(left, 1.0))

    def close(self) -> None:
        """Stop; the slot goes with the connection."""
        self._stop = True
        os.write(self._wake, b".")
        self._thread.join(timeout=5)
        self._connection.close()
        os.close(self._wake)
        os.close(self._woken)

    def _healthy(self) -> None:
        if self._problem is not None:
            raise MoveInterruptedError(
                f"the stream of changes of server {self._end.name!r} broke: {self._problem}; resume the move"
            ) from self._problem

    def _run(self) -> None:
        try:
            self._follow()
        except BaseException as exc:  # noqa: BLE001  # told to whoever asks next
            with self._state:
                self._problem = exc
                self._state.notify_all()

    def _follow(self) -> None:
        wire, answered = self._connection.pgconn, time.monotonic()
        while not self._stop:
            count, data = wire.get_copy_data(1)
            if count == 0:
                if time.monotonic() - answered > ANSWER_EVERY_S:
                    self._answer(wire)
                    answered = time.monotonic()
                if wire.socket in select.select([wire.socket, self._woken], [], [], 0.25)[0]:
                    wire.consume_input()
            elif count < 0:
                raise psycopg.OperationalError("the server ended the stream")
            elif data[0] == ROWS:
                self._take(bytes(data[25:]))
            elif data[0] == KEEPALIVE and data[17]:
                self._answer(wire)

    def _answer(self, wire: Any) -> None:
        now = int((time.time() - 946_684_800) * 1_000_000)
        wire.put_copy_data(b"r" + struct.pack(">QQQQB", self._lsn, self._lsn, self._lsn, now, 0))
        wire.flush()

    def _take(self, message: bytes) -> None:
        for event in self._reader.read(message):
            match event:
                case Changed(table, key, applied):
                    with self._state:
                        self._count += 1
                        self._changed.setdefault(table, {})[key] = self._count
                        if not applied:
                            self.foreign.setdefault(table, key)
                case Emptied(table, applied):
                    with self._state:
                        self._emptied.add(table)
                        if not applied:
                            self.foreign.setdefault(table, ())
                case Marked(n):
                    with self._state:
                        self._mark = n
                        self._state.notify_all()
                case Committed(lsn):
                    self._lsn = lsn
