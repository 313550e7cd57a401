"""Does the effects of ``core.moving`` on two servers, with the catalog as the journal."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import psycopg
from psycopg import errors, sql

from shardkit.catalog.journal import Journal
from shardkit.core import moving as m
from shardkit.core.names import (
    ID_ORIGIN_SEQUENCE,
    ID_SEQUENCE,
    MARKS_TABLE,
    SERVER_SCHEMA,
    schema_name,
    session_name,
    stream_name,
)
from shardkit.core.shardmap import ShardMap
from shardkit.db.connect import connect_admin, server_url
from shardkit.errors import FenceTimeoutError, MoveError, MoveInterruptedError, MoveRefusedError, NotEqualError, ShardKitError
from shardkit.move import checks, objects
from shardkit.move.copy import copy_tables, slot_with_snapshot
from shardkit.move.ends import SQL, End, contact
from shardkit.move.fence import Blocker, Fence, StructureChanged, guard, open_schema
from shardkit.move.options import MoveOptions, Progress, Report
from shardkit.move.probe import Probe
from shardkit.move.stream import ChangeStream
from shardkit.move.structure import AFTER_ROWS, create_schema, differences, make, stamp, structure_of, tables_of
from shardkit.move.verify import Verifier
from shardkit.settings import Settings

FEW_PENDING: Final = 100
ROUNDS: Final = 6
FLIP_TIMEOUT_S: Final = 120.0
STUCK_S: Final = 30.0


class Carrier:
    """One session's work on one move. ``do`` does an effect; ``close`` leaves no session behind."""

    def __init__(self, settings: Settings, journal: Journal, shardmap: ShardMap, options: MoveOptions, report: Report) -> None:
        self._settings, self.journal, self._map = settings, journal, shardmap
        self._options, self._report = options, report
        move = journal.move
        self._schema, self._next = schema_name(move.shard, move.epoch), schema_name(move.shard, move.epoch + 1)
        cluster, streams = shardmap.cluster_id, move.of_move or move.id
        ways = ("back", "out") if move.of_move else ("out", "back")
        self._out, self._back = (stream_name(cluster, streams, way) for way in ways)
        session = session_name(cluster, move.id)
        self._ends = {
            name: End(name, server_url(shardmap.server(name), settings), settings, session=session)
            for name in (move.source, move.target)
        }
        self.source, self.target = self._ends[move.source], self._ends[move.target]
        self._verifier: Verifier | None = None
        self._fence: Fence | None = None
        self._probe: Probe | None = None
        self._marks = (0, 0)
        self._fencing_since = 0.0
        self._attempt = 1
        self.facts: dict[str, Any] = {}
        self._do: dict[type[m.Effect], Callable[[Any], Any]] = {
            m.Enter: self._enter, m.Expel: self._expel, m.Check: self._check, m.Clean: self._clean, m.Publish: self._publish,
            m.Copy: self._copy, m.Complete: self._complete, m.Arm: self._arm, m.Subscribe: self._subscribe,
            m.CatchUp: self._catch_up, m.Verify: self._verify, m.AskFence: self._ask_fence, m.Lock: self._lock,
            m.Mark: self._mark, m.AwaitMark: self._await_mark, m.VerifyChanged: self._verify_changed,
            m.CarrySequences: self._carry_sequences, m.CommitFence: self._commit_fence, m.Unlock: self._unlock,
            m.LetThrough: self._let_through, m.Open: self._open, m.Flip: self._flip, m.Follow: self._follow,
        }  # fmt: skip

    def do(self, effect: m.Effect) -> Any:
        """The effect's result. Raises Busy, LostContact or a ShardKitError."""
        with contact():
            return self._do[type(effect)](effect)

    def close(self) -> None:
        """End all sessions; an open fence is rolled back by that."""
        if self._probe is not None:
            self._probe.finish(flipped=False)
            self._probe = None
        if self._fence is not None:
            self.source.close("fence")
        if self._verifier is not None:
            self._verifier.close()
            self._verifier = None
        for end in self._ends.values():
            end.close()

    def tell(self, step: str, **known: Any) -> None:
        """Report progress."""
        self._report(Progress(self.journal.move.id, step, **known))

    # the journal, and order

    def _enter(self, effect: m.Enter) -> None:
        self.journal.enter(effect.step)
        self.tell(effect.step.word)

    def _expel(self, _: m.Expel) -> None:
        self.close()
        self.source.one("expel", session=self.source.session)
        try:
            self.target.one("expel", session=self.target.session)
        except ShardKitError as exc:  # what it could still do there needs a fence, and that is on the source
            self.tell("expel", note=str(exc))

    def _check(self, _: m.Check) -> None:
        checks.refuse(self.findings())

    def findings(self) -> list[checks.Finding]:
        """What the checks find."""
        move = self.journal.move
        for name, end in self._ends.items():
            checks.check_identity(end, self._map.server(name), self._map.cluster_id)
        checks.check_state(self._map.server(move.target))
        if not self.source.one("schema_exists", schema=self._schema):
            raise MoveRefusedError(f"server {move.source!r} has no schema {self._schema}: the map and the server disagree; nothing was done")
        return checks.check(self.site())

    def site(self) -> checks.Site:
        """What is to be moved, as it is now."""
        move, options = self.journal.move, self._options
        return checks.Site(
            self.source,
            self.target,
            move.shard,
            move.epoch,
            structure_of(self.source.on(), self._schema),
            tables_of(self.source.on(), self._schema),
            options.slot_timeout_s,
            options.wal_limit,
        )

    def _clean(self, _: m.Clean) -> None:
        left: list[str] = []
        for found in self.journal.objects(inherited=self.journal.move.step >= m.Step.FINISH):
            if found.kind == "schema" and self._is_live(found.server, found.name):
                raise MoveError(f"schema {found.name} on server {found.server!r} is the live shard: it was not dropped")
            try:
                with contact():
                    objects.drop(self._ends[found.server], found.kind, found.name)
            except (ShardKitError, m.LostContact) as exc:
                left.append(f"{found.kind} {found.name} on {found.server}: {exc}")
            else:
                self.journal.gone(found)
        if left:
            raise MoveInterruptedError("not everything could be dropped; run it again:\n  - " + "\n  - ".join(left))

    def _is_live(self, server: str, schema: str) -> bool:
        there, epoch = self.journal.placement()
        return (server, schema) == (there, schema_name(self.journal.move.shard, epoch))

    # the copy

    def _publish(self, _: m.Publish) -> None:
        for end in self._ends.values():
            for lane in (self._out, self._back):
                self.journal.register(end.name, "marks", lane)
            _furnish(end)
        self._publication(self.source, self._out)

    def _publication(self, end: End, name: str) -> None:
        self.journal.register(end.name, "publication", name)
        if end.one("publication_exists", name=name):
            return
        tables = [table.within(self._schema) for table in tables_of(end.on(), self._schema)]
        marks = sql.SQL("{} WHERE (lane = {})").format(sql.Identifier(SERVER_SCHEMA, MARKS_TABLE), sql.Literal(name))
        end.on().execute(
            sql.SQL("CREATE PUBLICATION {} FOR TABLE {}").format(sql.Identifier(name), sql.SQL(", ").join([*tables, marks]))
        )

    def _copy(self, _: m.Copy) -> None:
        began, done = time.monotonic(), 0
        self.journal.register(self.source.name, "slot", self._out)
        self.journal.register(self.target.name, "schema", self._schema)
        with slot_with_snapshot(self.source, self._out, timeout_s=self._options.slot_timeout_s) as snapshot:
            site = self.site()
            make(self.target.on(), [create_schema(self._schema), *(part for part in site.structure if part.phase != AFTER_ROWS)])

            def copied(more: int) -> None:
                nonlocal done
                done += more
                progress = Progress(self.journal.move.id, "copy", done, site.size)
                self._report(progress)
                if self._options.throttle is not None and (pause_s := self._options.throttle(progress)) > 0:
                    time.sleep(pause_s)

            copy_tables(self.source, self.target, self._schema, site.tables, snapshot=snapshot, copied=copied)
        self.facts |= {"bytes": done, "copy_s": round(time.monotonic() - began, 3)}
        self._watch_wal()

    def _complete(self, _: m.Complete) -> None:
        wanted = structure_of(self.source.on(), self._schema)
        have = {(part.kind, part.name, part.ddl) for part in structure_of(self.target.on(), self._schema)}
        make(self.target.on(), [part for part in wanted if (part.kind, part.name, part.ddl) not in have])
        tables = tables_of(self.target.on(), self._schema)
        commands = [guard(self._schema, table) for table in tables]
        if tables:
            commands.append(sql.SQL("ANALYZE {}").format(sql.SQL(", ").join(table.within(self._schema) for table in tables)))
        for command in commands:
            self.target.on().execute(command)
        self._watch_wal()

    def _arm(self, _: m.Arm) -> None:
        self._publication(self.target, self._back)
        self.journal.register(self.target.name, "slot", self._back)
        if self.target.on().execute(SQL["slot"], {"name": self._back}).fetchone() is None:
            with self.target.on().transaction():
                self.target.on().execute(
                    sql.SQL("SET LOCAL statement_timeout = {}").format(round(self._options.slot_timeout_s * 1000))
                )
                try:
                    self.target.one("create_slot", name=self._back)
                except errors.QueryCanceled as exc:
                    raise MoveRefusedError(
                        f"server {self.target.name!r} has write transactions that stay open, and a replication slot has to wait for them: "
                        "end them, then resume"
                    ) from exc

    def _subscribe(self, _: m.Subscribe) -> None:
        self._subscription(self.target, self._out, publisher=self.source)

    def _subscription(self, end: End, name: str, *, publisher: End) -> None:
        self.journal.register(end.name, "subscription", name)
        if end.one("subscription_exists", name=name):
            return
        origin = sql.SQL(", origin = none") if min(end.version, publisher.version) >= 160_000 else sql.SQL("")
        end.on().execute(
            sql.SQL("CREATE SUBSCRIPTION {0} CONNECTION {1} PUBLICATION {0} WITH (copy_data = false, create_slot = false, slot_name = {0}{2})").format(
                sql.Identifier(name), sql.Literal(str(publisher.conninfo_of_subscription())), origin
            )
        )

    # catching up and comparing

    def _mark_and_wait(self) -> float:
        """Milliseconds that a mark takes to the target."""
        began = time.monotonic()
        n = self.source.one("write_mark", lane=self._out)
        stuck = began + STUCK_S
        while (self.target.one("last_mark", lane=self._out) or 0) < n:
            if time.monotonic() > stuck:
                self._watch_wal()
                self._why_stuck()
                stuck = time.monotonic() + STUCK_S
            waited = time.monotonic() - began
            if waited > 0.5:
                self.tell("stream", lag_ms=waited * 1000)
            time.sleep(0.0005 if waited < 0.05 else 0.02)
        return (time.monotonic() - began) * 1000

    def _why_stuck(self) -> None:
        """Raise if the apply worker fails again and again."""
        row = self.target.on().execute(SQL["subscription_lag"], {"name": self._out}).fetchone()
        if row is not None and (row[2] or 0) > 0:
            self._same_structure()
            raise MoveError(
                f"the target cannot apply the source's changes ({row[2]} errors; its log says why): the source goes on serving. Correct it "
                "and resume, or abort"
            )

    def _watch_wal(self) -> None:
        row = self.source.on().execute(SQL["slot"], {"name": self._out}).fetchone()
        if row is None or row[2] == "lost":
            raise MoveError(f"the slot {self._out} is gone from the source: abort the move and begin again; the source goes on serving")
        if (row[1] or 0) > self._options.wal_limit:
            raise MoveError(
                f"the move holds back {row[1] >> 20} MB of WAL on the source, more than its limit: the target is too slow. The source goes on "
                "serving; `shardkit moves abort` frees the WAL"
            )

    def _catch_up(self, _: m.CatchUp) -> None:
        while (lag_ms := self._mark_and_wait()) > self._options.lag_ms:
            self.tell("stream", lag_ms=lag_ms)
            self._watch_wal()

    def _same_structure(self) -> None:
        found = differences(structure_of(self.source.on(), self._schema), structure_of(self.target.on(), self._schema))
        if found:
            raise NotEqualError(
                "the structure of the shard changed while it was moving: the source goes on serving. Abort, and move again:\n  - "
                + "\n  - ".join(found)
                + "\n"
            )

    def _verify(self, _: m.Verify) -> None:
        tables = tables_of(self.source.on(), self._schema)
        mark, making = stamp(self.source.on(), self._schema, tables)
        self._same_structure()
        self.journal.register(self.source.name, "schema", self._next)
        self._fence = Fence(self.source, self._schema, self._next, tables, mark, self._options.budget_ms)
        if self._verifier is not None:
            self._verifier.close()
        timeout_s = self._options.slot_timeout_s
        changes = ChangeStream(self.source, slot=f"{self._out}_v", publication=self._out, tables=tables, timeout_s=timeout_s)
        watch = ChangeStream(self.target, slot=f"{self._back}_v", publication=self._back, tables=tables, timeout_s=timeout_s)
        self._verifier = Verifier(self.source, self.target, self._schema, tables, changes, watch)
        began, total = time.monotonic(), sum(table.rows for table in tables)
        verifier = self._verifier
        verifier.everything(lambda _more: self.tell("verify", done=verifier.rows, total=max(total, verifier.rows)))
        predicted = self._settle(verifier)
        self.facts |= {"rows": verifier.rows, "verify_s": round(time.monotonic() - began, 3), "predicted_ms": round(predicted, 1)}
        self._fencing_since = time.monotonic()
        if tables and self._probe is None:
            self._probe = Probe(self.source, self.target, schema=self._schema, next_schema=self._next, table=tables[0].name)

    def _settle(self, verifier: Verifier) -> float:
        """Compare what is pending until little is; milliseconds of the last round, which is what the fence will do too."""
        for _ in range(ROUNDS):
            began = time.monotonic()
            pending = verifier.again(mark=self._mark_and_wait)
            took = (time.monotonic() - began) * 1000
            if pending <= FEW_PENDING:
                break
        return took + 3.0

    # the fence

    def _ask_fence(self, _: m.AskFence) -> bool:
        return bool(self.source.one("schema_exists", schema=self._next))

    def _lock(self, effect: m.Lock) -> None:
        if self._verifier is None or self._fence is None:  # contact was lost meanwhile
            self._verify(m.Verify())
        assert self._fence is not None
        self.facts["tries"] = self.facts.get("tries", 0) + 1
        try:
            self._fence.lock(effect.wait_ms, attempt=self._attempt)
        except StructureChanged:
            self._fence.unlock()
            self._same_structure()
            self._verifier = None if self._verifier is None else self._verifier.close()
            raise m.Busy from None  # an index came and the target has it too? then it is compared again

    def _mark(self, _: m.Mark) -> None:
        self._marks = (self.source.one("write_mark", lane=self._out), self.target.one("write_mark", lane=self._back))

    def _await_mark(self, _: m.AwaitMark) -> None:
        assert self._fence is not None
        while (self.target.one("last_mark", lane=self._out) or 0) < self._marks[0]:
            if time.monotonic() > self._fence.deadline:
                raise m.Busy

    def _verify_changed(self, _: m.VerifyChanged) -> None:
        assert self._fence is not None
        assert self._verifier is not None
        deadline = self._fence.deadline
        self._verifier.changes.wait_for_mark(self._marks[0], deadline=deadline)
        self._verifier.watch.wait_for_mark(self._marks[1], deadline=deadline)
        self._verifier.finally_equal(deadline=deadline)

    def _carry_sequences(self, effect: m.CarrySequences) -> None:
        given = {"schema": self._schema, "ids": ID_SEQUENCE, "origin": ID_ORIGIN_SEQUENCE, "id_margin": effect.margin, "margin": m.SEQUENCE_MARGIN}
        rows = self.source.on().execute(SQL["sequences"], given, prepare=True).fetchall()
        if rows:
            names, values = zip(*rows, strict=True)
            self.target.on().execute(
                SQL["set_sequences"], {"schema": self._schema, "names": list(names), "values": list(values)}, prepare=True
            )

    def _commit_fence(self, _: m.CommitFence) -> None:
        assert self._fence is not None
        self._fence.commit()

    def _unlock(self, _: m.Unlock) -> None:
        if self._fence is not None:
            self._fence.unlock()

    def _let_through(self, effect: m.LetThrough) -> None:
        self._attempt = effect.attempt
        blockers = self._fence.blockers() if self._fence is not None else []
        if time.monotonic() - self._fencing_since > self._options.give_up_after_s:
            raise FenceTimeoutError(
                f"the fence could not be had within {self._options.budget_ms} ms in {effect.attempt - 1} tries. The source goes on serving, "
                f"and the target follows it. In the way: {_shown(blockers)}. Resume later, or with --kill-blockers-after"
            )
        self.tell("fence", note=f"try {effect.attempt}; in the way: {_shown(blockers)}")
        limit = self._options.kill_blockers_after_s
        for blocker in blockers:
            if limit is not None and blocker.age_ms > limit * 1000:
                self.source.one("end_session", pid=blocker.pid)
        time.sleep(effect.pause_ms / 1000)
        if self._verifier is not None:
            self._settle(self._verifier)

    # after the point of no return

    def _open(self, _: m.Open) -> None:
        began = time.monotonic()
        wanted = self.source.one("last_mark", lane=self._out) or 0
        while (self.target.one("last_mark", lane=self._out) or 0) < wanted:
            if time.monotonic() - began > FLIP_TIMEOUT_S:
                raise MoveInterruptedError("the target does not apply the last changes: look at its log, then resume; the shard is closed till then")
            time.sleep(0.001)
        if not self.target.one("schema_exists", schema=self._schema):
            return  # it is open
        if self.target.version < 160_000:
            self.target.one("advance_slot", name=self._back)
        tables = self._fence.tables if self._fence is not None else tables_of(self.target.on(), self._schema)
        while True:
            try:
                return open_schema(self.target, self._schema, self._next, tables, timeout_ms=200)
            except (errors.LockNotAvailable, errors.DeadlockDetected):
                if time.monotonic() - began > FLIP_TIMEOUT_S:
                    raise

    def _flip(self, _: m.Flip) -> None:
        began = time.monotonic()
        while True:
            try:
                self.journal.flip()
                break
            except psycopg.OperationalError:
                if time.monotonic() - began > FLIP_TIMEOUT_S:
                    raise
                self.tell("flip", note="the catalog does not answer; trying again")
                time.sleep(0.2)
                with contextlib.suppress(ShardKitError, psycopg.OperationalError):
                    self.journal = Journal(connect_admin(self._settings.catalog_url, self._settings), self.journal.move.id)
        if self._fence is not None and self._fence.began:
            self.facts |= {"held_ms": round((time.monotonic() - self._fence.began) * 1000, 1), "lock_ms": round(self._fence.waited_ms, 1)}
        if self._probe is not None:
            self.facts["stall_ms"] = round(self._probe.finish(flipped=True), 1)
            self._probe = None
        self.tell("follow")

    def _follow(self, _: m.Follow) -> None:
        if self._verifier is not None:
            self._verifier.close()
            self._verifier = None
        objects.drop(self.target, "subscription", self._out)
        objects.drop(self.source, "slot", self._out)
        for found in self.journal.objects():
            if found.name == self._out and found.kind in ("subscription", "slot"):
                self.journal.gone(found)
        self._subscription(self.source, self._back, publisher=self.target)
        self.journal.note(self.facts)


def _furnish(end: End) -> None:
    with end.on().transaction():
        end.on().execute("SELECT pg_advisory_xact_lock(7105, 2)")
        end.on().execute("SET LOCAL client_min_messages = warning")
        end.on().execute(SQL["furniture"])


def _shown(blockers: Sequence[Blocker]) -> str:
    if not blockers:
        return "nobody now"
    return "; ".join(f"pid {b.pid} ({b.user}, {b.application or 'no name'}, {b.state}, {b.age_ms / 1000:.1f} s)" for b in blockers[:3])


