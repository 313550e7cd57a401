"""The effects that switch one tenant over, and the carrier that does all effects of it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import psycopg
from psycopg import errors, sql

from shardkit.core import moving as m
from shardkit.core.names import ID_ORIGIN_SEQUENCE, ID_SEQUENCE, curtain_name
from shardkit.errors import MoveRefusedError, ShardKitError
from shardkit.move import objects
from shardkit.move.carrier import Carrier
from shardkit.move.curtain import SQL, drawing
from shardkit.move.fence import Closed
from shardkit.move.matching import Matcher
from shardkit.move.stream import ChangeStream
from shardkit.move.structure import Table, tables_of
from shardkit.move.switching import FLIP_TIMEOUT_S, Switching
from shardkit.move.tenantbuilding import TenantBuilding, arm, prepare
from shardkit.move.tenantwork import TenantWork
from shardkit.move.verify import Verifier

CLAIMS: Final = "shardkit_claims"
LOCK_MS: Final = 200


class TenantSwitching(Switching):
    """As for a whole shard, with these differences: nothing is applied but copied again, the source stays open for its other
    tenants under its next epoch, and what is left there of this one is hidden in the fence's own commit.
    """

    w: TenantWork
    sequence_margin = 1_000_000
    """Both shards go on drawing from the same value on, and a rollback brings the numbers together again."""

    def __init__(self, work: TenantWork) -> None:
        super().__init__(work)
        more: dict[type[m.Effect], Callable[[Any], Any]] = {
            m.CatchUp: self._catch_up, m.AwaitMark: self._await_mark, m.VerifyChanged: self._verify_changed,
            m.CarrySequences: self._carry_sequences, m.CommitFence: self._commit_fence, m.Open: self._open,
            m.Flip: self._flip, m.Follow: self._follow,
        }  # fmt: skip
        self.effects |= more

    def _catch_up(self, _: m.CatchUp) -> None:
        if self.w.returning:  # nothing was built for the way back
            self._forget(self.w.into_shard)
            prepare(self.w)
            arm(self.w)

    def _tables(self) -> list[Table]:
        self.w.stays_empty()
        return self.w.tables()

    def _rehearse_opening(self, _: Sequence[Table]) -> None:
        """Only the sequences, since both ends may be one server; and not on the way back, where others draw from them."""
        if self.w.returning:
            return
        for value in self._values(self.w.schema, 0):
            with contextlib.suppress(errors.UndefinedTable):
                self.w.target.on().execute(value.within(self.w.into))

    def _register_old_place(self) -> None:
        """It goes on serving the other tenants."""

    def _comparison(self, tables: list[Table], changes: ChangeStream, watch: ChangeStream) -> Verifier:
        self.w.changes = changes
        return Matcher(
            self.w.source, self.w.target, self.w.schema, tables, changes, watch, share=self.w.share, into=self.w.into
        )

    def _await_mark(self, _: m.AwaitMark) -> None:
        assert self._verifier is not None
        assert self._fence is not None
        self._verifier.changes.wait_for_mark(self._marks[0], deadline=self._fence.deadline)

    def _verify_changed(self, effect: m.VerifyChanged) -> None:
        super()._verify_changed(effect)
        assert self._fence is not None
        with self._fence.within_budget():
            self.w.stays_empty(on="fence")

    def _commit_fence(self, effect: m.CommitFence) -> None:
        assert self._fence is not None
        self._fence.also = drawing(self.w.curtain)
        if self.w.returning:
            try:
                self._carry_claims()
            except psycopg.Error as exc:
                raise m.LostContact(str(exc)) from exc
        super()._commit_fence(effect)

    def _carry_claims(self) -> None:
        """Keys reserved for rows that were written meanwhile: without its claim such a row counts as never committed."""
        source, target = self.w.source.on("fence"), self.w.target.on()
        claims = source.execute(sql.SQL("SELECT token, void FROM {}").format(sql.Identifier(self.w.schema, CLAIMS))).fetchall()
        with target.cursor() as cursor:
            add = sql.SQL("INSERT INTO {} (token, void) VALUES (%s, %s) ON CONFLICT DO NOTHING")
            cursor.executemany(add.format(sql.Identifier(self.w.into, CLAIMS)), claims)

    def _carry_sequences(self, effect: m.CarrySequences) -> None:
        if not self.w.returning:
            super()._carry_sequences(effect)
            return
        given = self.w.source.on().execute(SQL["sequences_behind"], {"schema": self.w.next_schema}).fetchall()
        for name, last, increment in given:
            if last is not None and name not in (ID_SEQUENCE, ID_ORIGIN_SEQUENCE):
                self._raise_sequence(name, last, increment)

    def _raise_sequence(self, name: str, last: int, increment: int) -> None:
        """Set a sequence that the other tenants draw from to *last* at least. ALTER keeps them away until that is done."""
        target = self.w.target.on()
        for schema in (self.w.into, self.w.next_into):
            sequence = sql.Identifier(schema, name)
            literal = sql.Literal(f"{schema}.{sql.Identifier(name).as_string(None)}")
            with contextlib.suppress(errors.UndefinedTable, errors.InvalidSchemaName), target.transaction():
                target.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(LOCK_MS))
                target.execute(sql.SQL("ALTER SEQUENCE {} INCREMENT BY {}").format(sequence, increment))
                further = sql.SQL("greatest" if increment > 0 else "least")
                raised = sql.SQL("SELECT setval({0}, {1}({2}, pg_sequence_last_value({0}::regclass)))")
                target.execute(raised.format(literal, further, last))

    def _open(self, _: m.Open) -> None:
        began = time.monotonic()
        while True:
            try:
                self._open_now()
                return
            except (errors.InvalidSchemaName, errors.UndefinedTable):
                return  # it is open
            except (errors.LockNotAvailable, errors.DeadlockDetected):
                if time.monotonic() - began > FLIP_TIMEOUT_S:
                    raise

    def _open_now(self) -> None:
        target = self.w.target
        if not self.w.returning:
            tables = self._fence.tables if self._fence is not None else self._tables_there()
            Closed(target, self.w.into, self.w.next_into, tables).open(self._next_values, timeout_ms=LOCK_MS)
            return
        of_move = self.w.journal.move.of_move
        assert of_move is not None
        with target.on().transaction():  # who reads the shard under its old name has not seen these rows
            target.on().execute(sql.SQL("SET LOCAL lock_timeout = {}").format(LOCK_MS))
            target.on().execute(SQL["lift"], {"name": curtain_name(of_move)})
            target.on().execute(
                sql.SQL("ALTER SCHEMA {} RENAME TO {}").format(*map(sql.Identifier, (self.w.into, self.w.next_into)))
            )

    def _tables_there(self) -> list[Table]:
        return tables_of(self.w.target.on(), self.w.into)

    def _flip(self, effect: m.Flip) -> None:
        super()._flip(effect)
        if self.w.options.forget is not None:  # a program with the old map finds nothing there, and asks where the tenant went
            with contextlib.suppress(ShardKitError):
                self.w.options.forget(self.w.tenant, self.w.shard)

    def _follow(self, _: m.Follow) -> None:
        if self._verifier is not None:
            self._verifier.close()
            self._verifier = None
        for found in self.w.journal.objects():
            if found.kind == "publication":
                objects.drop(self.w.ends[found.server], found.kind, found.name)
                self.w.journal.gone(found)
        self.w.journal.note(self.w.facts)

    def _forget(self, shard: int) -> None:
        """What was cached of the tenant under *shard* before others wrote for it elsewhere is older than what is there now."""
        forget = self.w.options.forget
        if forget is not None:
            forget(self.w.tenant, shard)
        elif self.w.settings.redis_url is not None:
            raise MoveRefusedError(
                "there is a cache (redis_url), and nobody to drop from it what it has of the tenant under the shard it "
                "comes back to: use `shardkit moves rollback`, or give MoveOptions(forget=...). Nothing was switched over"
            )


class TenantCarrier(Carrier):
    """Does the effects of carrying one tenant."""

    w: TenantWork

    def __init__(self, work: TenantWork) -> None:
        super().__init__(work)
        self._switching = TenantSwitching(work)
        self._effects |= {**TenantBuilding(work).effects, **self._switching.effects}

    def close(self) -> None:
        """End all sessions; an open fence is rolled back by that."""
        super().close()
        self.w.close()

    def _expel(self, effect: m.Expel) -> None:
        if self.w.source.name != self.w.target.name:
            super()._expel(effect)
            return
        self.close()
        self.w.source.one("expel", session=self.w.source.session)
