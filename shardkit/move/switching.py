"""The effects that switch over: compare, fence, open, flip, follow."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Final

import psycopg
from psycopg import errors, sql

from shardkit.core import moving as m
from shardkit.core.names import ID_ORIGIN_SEQUENCE, ID_SEQUENCE
from shardkit.db.connect import connect_admin
from shardkit.errors import FenceTimeoutError, LeaseLostError, MoveInterruptedError, ShardKitError
from shardkit.move import objects
from shardkit.move.ends import SQL
from shardkit.move.fence import Blocker, Closed, Fence, NextValue, StructureChanged, guard
from shardkit.move.probe import Probe
from shardkit.move.statistics import analyze_unknown
from shardkit.move.stream import ChangeStream
from shardkit.move.structure import Table, stamp, tables_of
from shardkit.move.verify import Verifier
from shardkit.move.work import Work

FEW_PENDING: Final = 100
ROUNDS: Final = 6
FLIP_TIMEOUT_S: Final = 120.0


class Switching:
    """Comparison, fence and flip; ``close`` leaves no thread and no open fence behind."""

    sequence_margin = m.SEQUENCE_MARGIN

    def __init__(self, work: Work) -> None:
        self.w = work
        self._verifier: Verifier | None = None
        self._fence: Fence | None = None
        self._probe: Probe | None = None
        self._marks = (0, 0)
        self._applied_on: Any = None
        self._fencing_since = 0.0
        self._attempt = 1
        self._next_values: list[NextValue] = []
        self._structure: Future[None] | None = None
        self._pool = ThreadPoolExecutor(2)
        self.effects: dict[type[m.Effect], Callable[[Any], Any]] = {
            m.CatchUp: self._catch_up, m.Verify: self._verify, m.AskFence: self._ask_fence, m.Lock: self._lock,
            m.Mark: self._mark, m.AwaitMark: self._await_mark, m.VerifyChanged: self._verify_changed,
            m.CarrySequences: self._carry_sequences, m.CommitFence: self._commit_fence, m.Unlock: self._unlock,
            m.LetThrough: self._let_through, m.Open: self._open, m.Flip: self._flip, m.Follow: self._follow,
        }  # fmt: skip

    def close(self) -> None:
        """End threads and the fence's transaction."""
        if self._probe is not None:
            self._probe.finish(flipped=False)
            self._probe = None
        if self._structure is not None:
            wait([self._structure])  # or it would open the fence's connection anew
            self._structure = None
        self.w.source.close("fence")
        if self._verifier is not None:
            self._verifier.close()
            self._verifier = None
        self._applied_on = None

    def _catch_up(self, _: m.CatchUp) -> None:
        while (lag_ms := self.w.mark_and_wait()) > self.w.options.lag_ms:
            self.w.tell("stream", lag_ms=lag_ms)
            self.w.watch_wal()

    def _verify(self, _: m.Verify) -> None:
        tables = self._tables()
        mark = stamp(self.w.source.on(), self.w.schema, tables)[0]
        self.w.same_structure()
        self._register_old_place()
        self._fence = Fence(self.w.source, self.w.schema, self.w.next_schema, tables, mark, self.w.options.budget_ms)
        if self._verifier is not None:
            self._verifier.close()
        changes, watch = self._follow_changes(tables)
        if self.w.journal.move.of_move is None:  # not before: those streams would have to wait for it
            self.w.meanwhile(lambda: analyze_unknown(self.w.target, self.w.into))
        self._verifier = self._comparison(tables, changes, watch)
        began, total = time.monotonic(), sum(table.rows for table in tables)
        verifier = self._verifier
        verifier.everything(
            lambda _more: self.w.ease(self.w.tell("verify", done=verifier.rows, total=max(total, verifier.rows)))
        )
        self.w.caught_up()
        self._fence.warm_up()
        self._rehearse_opening(tables)
        self.w.journal.warm_up()
        self.w.target.one("write_mark", lane=self.w.back, on="marks")
        predicted = self._settle(verifier)
        self.w.facts |= {
            "rows": verifier.rows,
            "verify_s": round(time.monotonic() - began, 3),
            "predicted_ms": round(predicted, 1),
        }
        self._fencing_since = time.monotonic()
        if tables and self._probe is None:
            self._probe = Probe(
                self.w.source, self.w.target, schema=self.w.schema, next_schema=self.w.next_into, table=tables[0].name
            )

    def _follow_changes(self, tables: Sequence[Table]) -> list[ChangeStream]:
        """What changes on the source, and on the target; both begin at the same time, since each may have to wait."""
        begun = [
            self._pool.submit(
                ChangeStream, end, slot=self.w.following(name), publication=name, tables=tables,
                timeout_s=self.w.options.slot_timeout_s,
            )
            for end, name in ((self.w.source, self.w.out), (self.w.target, self.w.back))
        ]  # fmt: skip
        try:
            return [one.result() for one in begun]
        except BaseException:
            for one in begun:
                if one.exception() is None:
                    one.result().close()
            raise

    def _tables(self) -> list[Table]:
        return tables_of(self.w.source.on(), self.w.schema)

    def _rehearse_opening(self, tables: Sequence[Table]) -> None:
        Closed(self.w.target, self.w.schema, self.w.next_schema, tables).rehearse(self._values(self.w.schema, 0))

    def _register_old_place(self) -> None:
        self.w.journal.register(self.w.source.name, "schema", self.w.next_schema)

    def _comparison(self, tables: list[Table], changes: ChangeStream, watch: ChangeStream) -> Verifier:
        return Verifier(self.w.source, self.w.target, self.w.schema, tables, changes, watch)

    def _settle(self, verifier: Verifier) -> float:
        """Compare what is pending until little is; milliseconds of the last round, which is what the fence will do too."""
        for _ in range(ROUNDS):
            began = time.monotonic()
            pending = verifier.again(mark=self.w.mark_and_wait)
            took = (time.monotonic() - began) * 1000
            if pending <= FEW_PENDING:
                break
        return took + 3.0

    def _ask_fence(self, _: m.AskFence) -> bool:
        return bool(self.w.source.one("schema_exists", schema=self.w.next_schema))

    def _lock(self, effect: m.Lock) -> None:
        if self._verifier is None or self._fence is None:  # contact was lost meanwhile
            self._verify(m.Verify())
        assert self._fence is not None
        self.w.facts["tries"] = self.w.facts.get("tries", 0) + 1
        self._fence.lock(effect.wait_ms, attempt=self._attempt)
        self._structure = self._pool.submit(self._fence.same_structure)  # while the mark travels

    def _mark(self, _: m.Mark) -> None:
        there = self._pool.submit(self.w.target.one, "write_mark", lane=self.w.back, on="marks")
        try:
            here = self.w.source.one("write_mark", lane=self.w.out)
        finally:
            wait([there])  # whatever became of ours: no mark is written after this effect, where a clean-up may come next
        self._marks = here, there.result()

    def _await_mark(self, _: m.AwaitMark) -> None:
        assert self._fence is not None
        while (self.w.target.one("last_mark", lane=self.w.out) or 0) < self._marks[0]:
            if time.monotonic() > self._fence.deadline:
                raise m.Busy
        self._applied_on = self.w.target.on()

    def _verify_changed(self, _: m.VerifyChanged) -> None:
        assert self._fence is not None
        assert self._verifier is not None
        deadline = self._fence.deadline
        self._verifier.changes.wait_for_mark(self._marks[0], deadline=deadline)
        self._verifier.watch.wait_for_mark(self._marks[1], deadline=deadline)
        self._verifier.finally_equal(deadline=deadline)
        try:
            assert self._structure is not None
            self._structure.result()
        except StructureChanged:
            self._fence.unlock()
            self.w.same_structure()
            self._verifier.close()
            self._verifier = None
            raise m.Busy from None  # both sides are alike all the same: it is compared again

    def _carry_sequences(self, effect: m.CarrySequences) -> None:
        self._next_values = self._values(self.w.next_schema, effect.margin)  # set in the transaction that opens the copy

    def _values(self, schema: str, id_margin: int) -> list[NextValue]:
        """Where sequences go on that stand in *schema* on the source."""
        margins = {ID_SEQUENCE: id_margin, ID_ORIGIN_SEQUENCE: 0}
        rows = self.w.source.on().execute(SQL["sequences"], {"schema": schema}, prepare=True).fetchall()
        unused = self._first_values(schema, [name for name, last, *_ in rows if last is None])
        return [
            NextValue(
                name,
                m.goes_on_at(
                    unused[name] if last is None else last, increment=increment, lowest=lowest, highest=highest,
                    margin=margins.get(name, self.sequence_margin),
                ),
                increment > 0,
            )
            for name, last, increment, lowest, highest in rows
        ]  # fmt: skip

    def _first_values(self, schema: str, names: Sequence[str]) -> dict[str, int]:
        """What sequences will give first, from which nothing was drawn since they were made, or set: only they know that."""
        one = sql.SQL("SELECT {}, last_value FROM {}")
        asked = [one.format(sql.Literal(name), sql.Identifier(schema, name)) for name in names]
        return dict(self.w.source.on().execute(sql.SQL(" UNION ALL ").join(asked)).fetchall()) if asked else {}

    def _commit_fence(self, _: m.CommitFence) -> None:
        assert self._fence is not None
        self._fence.commit()

    def _unlock(self, _: m.Unlock) -> None:
        if self._fence is not None:
            self._fence.unlock()

    def _let_through(self, effect: m.LetThrough) -> None:
        self._attempt = effect.attempt
        blockers = self._fence.blockers() if self._fence is not None else []
        if time.monotonic() - self._fencing_since > self.w.options.give_up_after_s:
            raise FenceTimeoutError(
                f"the fence could not be had within {self.w.options.budget_ms} ms in {effect.attempt - 1} tries. The "
                "source goes on serving, "
                f"and the target follows it. In the way: {_shown(blockers)}. Resume later, or with --kill-blockers-after "
                "(what is prepared waits for COMMIT PREPARED or ROLLBACK PREPARED: `shardkit doctor`)"
            )
        self.w.tell("fence", note=f"try {effect.attempt}; in the way: {_shown(blockers)}")
        limit = self.w.options.kill_blockers_after_s
        for blocker in blockers:
            if limit is not None and blocker.pid is not None and blocker.age_ms > limit * 1000:
                self.w.source.one("end_session", pid=blocker.pid)
        time.sleep(effect.pause_ms / 1000)
        if self._verifier is not None:
            self._settle(self._verifier)

    def _open(self, _: m.Open) -> None:
        began = time.monotonic()
        if self._applied_on is not self.w.target.on():  # the target may have crashed since, and what it had applied been lost
            self._await_applied(began)
        if not self.w.knows_origins and self.w.target.one("schema_exists", schema=self.w.schema):
            self.w.target.one("write_mark", lane=self.w.back)  # its commit flushes what was applied without waiting for that
            self.w.target.one("advance_slot", name=self.w.back)
        tables = self._fence.tables if self._fence is not None else tables_of(self.w.target.on(), self.w.schema)
        closed = Closed(self.w.target, self.w.schema, self.w.next_schema, tables)
        while True:
            try:
                return closed.open(self._next_values, timeout_ms=200)
            except (errors.InvalidSchemaName, errors.UndefinedTable):
                return None  # it is open
            except (errors.LockNotAvailable, errors.DeadlockDetected):
                if time.monotonic() - began > FLIP_TIMEOUT_S:
                    raise

    def _await_applied(self, began: float) -> None:
        wanted = self.w.source.one("last_mark", lane=self.w.out) or 0
        while (self.w.target.one("last_mark", lane=self.w.out) or 0) < wanted:
            if time.monotonic() - began > FLIP_TIMEOUT_S:
                raise MoveInterruptedError(
                    "the target does not apply the last changes: look at its log, then resume; the shard is closed till then"
                )
            time.sleep(0.001)

    def _flip(self, _: m.Flip) -> None:
        began = time.monotonic()
        while True:
            try:
                self.w.journal.flip()
                break
            except psycopg.OperationalError:
                if time.monotonic() - began > FLIP_TIMEOUT_S:
                    raise
                self.w.tell("flip", note="the catalog does not answer; trying again")
                time.sleep(0.2)
                self._reach_the_catalog()
        if self._fence is not None and self._fence.began:
            self.w.facts |= {
                "held_ms": round((time.monotonic() - self._fence.began) * 1000, 1),
                "lock_ms": round(self._fence.waited_ms, 1),
            }
        if self._probe is not None:
            self.w.facts["stall_ms"] = round(self._probe.finish(flipped=True), 1)
            self._probe = None
        self.w.tell("follow")

    def _reach_the_catalog(self) -> None:
        """Go on with the journal on a new connection, if there is one already. Raises LeaseLostError."""
        try:
            catalog = connect_admin(self.w.settings.catalog_url, self.w.settings)
        except (ShardKitError, psycopg.OperationalError):
            return
        try:
            self.w.journal = self.w.journal.regained(catalog)
        except LeaseLostError:
            catalog.close()
            raise
        except (ShardKitError, psycopg.OperationalError):
            catalog.close()

    def _follow(self, _: m.Follow) -> None:
        if self._verifier is not None:
            self._verifier.close()
            self._verifier = None
        objects.drop(self.w.target, "subscription", self.w.out)
        objects.drop(self.w.source, "slot", self.w.out)
        for found in self.w.journal.objects():
            if found.name == self.w.out and found.kind in ("subscription", "slot"):
                self.w.journal.gone(found)
        for table in tables_of(self.w.source.on(), self.w.next_schema):  # nobody is led here; this is for those who look for it
            self.w.source.on().execute(guard(self.w.next_schema, table))
        self.w.subscription(self.w.source, self.w.back, publisher=self.w.target)
        self.w.journal.note(self.w.facts)


def _shown(blockers: Sequence[Blocker]) -> str:
    return "; ".join(map(str, blockers[:3])) or "nobody now"
