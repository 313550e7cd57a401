"""What every effect of a move works with: the two servers, the names, the journal, and the way to say how it goes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Final

import psycopg
from psycopg import sql

from shardkit.catalog.journal import Journal
from shardkit.core.names import MARKS_TABLE, SERVER_SCHEMA, schema_name, session_name, stream_name
from shardkit.core.shardmap import ShardMap
from shardkit.db.connect import server_url
from shardkit.errors import MoveError, NotEqualError, ShardKitError, WalLimitError
from shardkit.move import checks
from shardkit.move.easing import Easing
from shardkit.move.ends import SQL, End
from shardkit.move.options import MoveOptions, Progress, Report
from shardkit.move.structure import Part, differences, retold, structure_of, tables_of
from shardkit.settings import Settings

STUCK_S: Final = 30.0
WAL_EVERY_S: Final = 1.0


class Work:
    """One session's work on one move. ``out`` names the stream that carries it, ``back`` the one for the way back."""

    def __init__(self, settings: Settings, journal: Journal, shardmap: ShardMap, options: MoveOptions, report: Report) -> None:
        self.settings, self.journal, self.map = settings, journal, shardmap
        self.options, self._report = options, report
        move = journal.move
        self.schema, self.next_schema = schema_name(move.shard, move.epoch), schema_name(move.shard, move.epoch + 1)
        self.into, self.next_into = self.schema, self.next_schema  # the names on the target
        cluster, streams = shardmap.cluster_id, move.of_move or move.id
        self.out, self.back = (
            stream_name(cluster, streams, way) for way in (("back", "out") if move.of_move else ("out", "back"))
        )
        session = session_name(cluster, move.id)
        self.ends = {
            name: End(name, server_url(shardmap.server(name), settings), settings, session=session)
            for name in (move.source, move.target)
        }
        self.source, self.target = self.ends[move.source], self.ends[move.target]
        self.facts: dict[str, Any] = {}
        self._easing = Easing(self.source, options.limits, paused=self._paused)
        self._wal_seen = time.monotonic()
        self._aside = ThreadPoolExecutor(1)
        self._doing: list[Future[Any]] = []

    def meanwhile(self, call: Callable[[], object]) -> None:
        """Do *call* beside what comes next; ``caught_up`` waits for it."""
        self._doing.append(self._aside.submit(call))

    def caught_up(self) -> None:
        """Wait for what is done meanwhile. Raises what it raised."""
        while self._doing:
            self._doing.pop(0).result()

    def close(self) -> None:
        """End all sessions; an open fence is rolled back by that."""
        with contextlib.suppress(psycopg.Error, ShardKitError):
            self.caught_up()
        for end in self.ends.values():
            end.close()

    def ease(self, progress: Progress) -> None:
        """Leave the source alone for as long as its load asks for it."""
        self._easing.ease(progress)
        if self._easing.paused_s:
            self.facts["paused_s"] = round(self._easing.paused_s, 2)
        self._keep_watch()
        if self.options.throttle is not None and (pause_s := self.options.throttle(progress)) > 0:
            time.sleep(pause_s)

    def _paused(self, progress: Progress, reason: str) -> None:
        self._report(replace(progress, note=f"paused: {reason}"))
        self._keep_watch()

    def _keep_watch(self) -> None:
        if time.monotonic() - self._wal_seen > WAL_EVERY_S:
            self.watch_wal()
            self._wal_seen = time.monotonic()

    def tell(self, step: str, **known: Any) -> Progress:
        """Report progress."""
        progress = Progress(self.journal.move.id, step, **known)
        self._report(progress)
        return progress

    def site(self) -> checks.Site:
        """What is to be moved, as it is now."""
        move = self.journal.move
        return checks.site_of(self.source, self.target, move.shard, move.epoch, self.options)

    def publication(self, end: End, name: str) -> None:
        """Make the publication *name* of the shard on *end*, unless it is there."""
        self.journal.register(end.name, "publication", name)
        if end.one("publication_exists", name=name):
            return
        tables = [table.within(self.schema) for table in tables_of(end.on(), self.schema)]
        marks = sql.SQL("{} WHERE (lane = {})").format(sql.Identifier(SERVER_SCHEMA, MARKS_TABLE), sql.Literal(name))
        end.on().execute(
            sql.SQL("CREATE PUBLICATION {} FOR TABLE {}").format(sql.Identifier(name), sql.SQL(", ").join([*tables, marks]))
        )

    @property
    def knows_origins(self) -> bool:
        """Whether a server can leave out of its stream what it has from the other: both must be PostgreSQL 16 or later."""
        return min(end.version for end in self.ends.values()) >= 160_000

    def subscription(self, end: End, name: str, *, publisher: End) -> None:
        """Let *end* apply what *publisher* sends through the stream *name*, unless it does already."""
        self.journal.register(end.name, "subscription", name)
        if end.one("subscription_exists", name=name):
            return
        origin = sql.SQL(", origin = none" if self.knows_origins else "")
        end.on().execute(
            sql.SQL(
                "CREATE SUBSCRIPTION {0} CONNECTION {1} PUBLICATION {0} WITH (copy_data = false, create_slot = false, "
                "slot_name = {0}{2})"
            ).format(sql.Identifier(name), sql.Literal(str(publisher.conninfo_of_subscription())), origin)
        )

    def mark_and_wait(self) -> float:
        """Milliseconds that a mark takes to the target."""
        began = time.monotonic()
        n = self.source.one("write_mark", lane=self.out)
        stuck = began + STUCK_S
        while (self.target.one("last_mark", lane=self.out) or 0) < n:
            waited = time.monotonic() - began
            if waited > 0.5:
                self.tell("stream", lag_ms=waited * 1000)
                self._keep_watch()
            if time.monotonic() > stuck:
                self._why_stuck()
                stuck = time.monotonic() + STUCK_S
            time.sleep(0.0005 if waited < 0.05 else 0.02)
        return (time.monotonic() - began) * 1000

    def _why_stuck(self) -> None:
        """Raise if the apply worker fails again and again."""
        row = self.target.on().execute(SQL["subscription_lag"], {"name": self.out}).fetchone()
        if row is not None and (row[2] or 0) > 0:
            self.same_structure()
            raise MoveError(
                f"the target cannot apply the source's changes ({row[2]} errors; its log says why): the source goes on "
                "serving. Correct it "
                "and resume, or abort"
            )

    def watch_wal(self) -> None:
        """Raise MoveError where the stream is broken, WalLimitError where it holds back more WAL on the source than allowed."""
        row = self.source.on().execute(SQL["slot"], {"name": self.out}).fetchone()
        if row is None or row[2] == "lost":
            raise MoveError(
                f"the slot {self.out} is gone from the source: abort the move and begin again; the source goes on serving"
            )
        self.within_wal_limit(row[1] or 0)

    @staticmethod
    def following(stream: str) -> str:
        """Name of the slot of a session that follows the changes of *stream*, which ends with that session."""
        return f"{stream}_v"

    def within_wal_limit(self, held: int) -> None:
        """Raise WalLimitError where *held* bytes of WAL are more than the move may hold back on the source."""
        if held > self.options.wal_limit:
            raise WalLimitError(
                f"the move held back {held >> 20} MB of WAL on server {self.source.name!r}, more than the "
                f"{self.options.wal_limit >> 20} MB it may (--max-wal): the target is too slow"
            )

    def structure(self) -> list[Part]:
        """What the source's schema is made of, in the target's words: releases tell the same things differently."""
        return self._in_words_of_target(structure_of(self.source.on(), self.schema), self.schema)

    def structure_there(self) -> list[Part]:
        """What the target's is made of."""
        return structure_of(self.target.on(), self.schema)

    def _in_words_of_target(self, parts: list[Part], schema: str) -> list[Part]:
        if self.source.version // 10_000 == self.target.version // 10_000:
            return parts
        return retold(self.target.on(), parts, schema)

    def same_structure(self) -> None:
        """Raise NotEqualError unless both sides are made alike."""
        if found := differences(self.structure(), self.structure_there()):
            raise NotEqualError(
                "the structure of the shard changed while it was moving: the source goes on serving. Abort, and move "
                "again:\n  - " + "\n  - ".join(found) + "\n"
            )
