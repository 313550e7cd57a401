"""The fence: a short transaction on the source that holds writers off, and ends with the rename that closes the shard there.

Everything has the budget's rest as its limit, on the server too: should this process stop in the middle, PostgreSQL ends the
transaction by itself and lets the writers go on.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import psycopg
from psycopg import errors, sql

from shardkit.core.moving import Busy, LostContact
from shardkit.core.names import GUARD_TRIGGER
from shardkit.move.ends import SQL, End
from shardkit.move.structure import Table, stamp

OLD_MS: Final = 50.0
"""A transaction open for longer is waited for before writers are held off at all; but not for ever, hence the next line."""
EVEN_SO: Final = 8
REHEARSAL_MS: Final = 50


@dataclass(frozen=True, slots=True)
class Blocker:
    """A transaction that the fence has to wait for, open for *age_ms*; without a ``pid`` it is prepared, and ``application`` is
    what it is called.
    """

    pid: int | None
    age_ms: float
    state: str
    user: str
    application: str

    def __str__(self) -> str:
        if self.pid is None:
            return f"prepared transaction {self.application} ({self.user}, {self.age_ms / 1000:.1f} s)"
        return f"pid {self.pid} ({self.user}, {self.application or 'no name'}, {self.state}, {self.age_ms / 1000:.1f} s)"


@dataclass(slots=True)
class Fence:
    """The fence of *schema* on the source, tried again and again; ``stamp`` is what its structure was when it was compared."""

    source: End
    schema: str
    next_schema: str
    tables: Sequence[Table]
    stamp: str
    budget_ms: int
    began: float = 0.0
    deadline: float = 0.0
    waited_ms: float = 0.0
    also: sql.Composed | None = None
    """Done in the same commit as the rename."""

    def warm_up(self) -> None:
        """Do on the fence's connection what will be done under the lock, and take it back: what a session does for the first
        time takes ten times as long, and whether it may at all shows before writers wait.
        """
        self._stamp()
        self.blockers()
        commands = [sql.SQL("BEGIN; SET LOCAL lock_timeout = {}").format(sql.Literal(REHEARSAL_MS))]
        if self.tables:
            commands.append(sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(self._names()))
        _rehearse(self.source.on("fence"), [*commands, self._rename()])

    def _names(self) -> sql.Composed:
        return sql.SQL(", ").join(table.within(self.schema) for table in self.tables)

    def _rename(self) -> sql.Composed:
        return _renamed(self.schema, self.next_schema)

    def _stamp(self) -> tuple[str, int]:
        return stamp(self.source.on("fence"), self.schema, self.tables)

    def blockers(self) -> list[Blocker]:
        """Transactions that hold a lock on the shard's tables, the oldest first."""
        rows = self.source.on().execute(SQL["blockers"], {"tables": [table.oid for table in self.tables]})
        return [Blocker(*row) for row in rows]

    def lock(self, wait_ms: int, *, attempt: int) -> None:
        """Hold writers off. Raises Busy, with no writer held off, while old transactions are open (but not in every
        EVEN_SO-th try).
        """
        if attempt % EVEN_SO and any(blocker.age_ms > OLD_MS for blocker in self.blockers()):
            raise Busy
        connection = self.source.on("fence")
        self.began = time.monotonic()
        self.deadline = self.began + self.budget_ms / 1000
        commands = [
            sql.SQL("BEGIN"),
            sql.SQL("SET LOCAL lock_timeout = {}").format(wait_ms),
            sql.SQL("SET LOCAL idle_in_transaction_session_timeout = {}").format(self.budget_ms),
            sql.SQL("SET LOCAL statement_timeout = {}").format(self.budget_ms),
        ]
        if self.tables:
            commands.append(sql.SQL("LOCK TABLE {} IN EXCLUSIVE MODE").format(self._names()))
        try:
            connection.execute(sql.SQL("; ").join(commands))
        except (errors.LockNotAvailable, errors.DeadlockDetected, errors.QueryCanceled) as exc:
            raise Busy from exc
        self.waited_ms = (time.monotonic() - self.began) * 1000

    @contextlib.contextmanager
    def within_budget(self) -> Iterator[None]:
        """Raise Busy for what the server ended in the block once the budget was over: the writers go on already."""
        try:
            yield
        except psycopg.Error as exc:
            if time.monotonic() < self.deadline:
                raise
            raise Busy from exc

    def same_structure(self) -> None:
        """Raise StructureChanged if there was DDL since the comparison, Busy while somebody makes something uncommitted."""
        with self.within_budget():
            now, making = self._stamp()
        if making:
            raise Busy
        if now != self.stamp:
            raise StructureChanged

    def commit(self) -> None:
        """Close the shard: give it the name of the next epoch, commit. Raises LostContact if
        unsure.
        """
        strong = sql.SQL(
            "SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') IN "
            "('off', 'local')"
        )
        if time.monotonic() > self.deadline:
            raise Busy
        try:
            commands = [strong, self._rename(), *([self.also] if self.also is not None else []), sql.SQL("COMMIT")]
            self.source.on("fence").execute(sql.SQL("; ").join(commands))
        except psycopg.Error as exc:
            raise LostContact(str(exc)) from exc

    def unlock(self) -> None:
        """Let writers go on."""
        with contextlib.suppress(psycopg.Error):
            self.source.on("fence").execute("ROLLBACK")
        connection = self.source.on("fence")
        if connection.info.transaction_status:
            self.source.close("fence")


class StructureChanged(Exception):  # noqa: N818  the runner says what changed
    """Somebody changed the shard's structure since it was compared."""


def guard(schema: str, table: Table) -> sql.Composed:
    """The trigger that refuses writes to a copy; a subscription passes it."""
    return sql.SQL(
        "CREATE OR REPLACE TRIGGER {} BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON {} "
        "FOR EACH STATEMENT EXECUTE FUNCTION shardkit.refuse_writes()"
    ).format(sql.Identifier(GUARD_TRIGGER), table.within(schema))


def unguard(schema: str, table: Table) -> sql.Composed:
    """Take it away."""
    return sql.SQL("DROP TRIGGER IF EXISTS {} ON {}").format(sql.Identifier(GUARD_TRIGGER), table.within(schema))


class NextValue(NamedTuple):
    """Where a sequence goes on."""

    sequence: str
    value: int
    upwards: bool

    def within(self, schema: str) -> sql.Composed:
        """Set it in *schema*; never back, since somebody may have drawn from it when this server had the shard before."""
        name = sql.Literal(sql.Identifier(schema, self.sequence).as_string(None))
        return sql.SQL("SELECT setval({0}::regclass, {1}({2}, pg_sequence_last_value({0}::regclass)))").format(
            name, sql.SQL("greatest" if self.upwards else "least"), sql.Literal(self.value)
        )


@dataclass(frozen=True, slots=True)
class Closed:
    """The copy on the target, which takes writes once it has the name *next_schema*."""

    target: End
    schema: str
    next_schema: str
    tables: Sequence[Table]

    def open(self, values: Iterable[NextValue], *, timeout_ms: int) -> None:
        """Set the sequences, take the guards off, and rename: one message, one transaction."""
        connection = self.target.on()
        try:
            connection.execute(sql.SQL("; ").join([*self._commands(values, timeout_ms), sql.SQL("COMMIT")]))
        except psycopg.Error:
            with contextlib.suppress(psycopg.Error):
                connection.execute("ROLLBACK")
            raise

    def rehearse(self, values: Iterable[NextValue]) -> None:
        """Do the same, and take it back (sequences are not taken back, hence *values* without a margin)."""
        _rehearse(self.target.on(), self._commands(values, REHEARSAL_MS))

    def _commands(self, values: Iterable[NextValue], timeout_ms: int) -> list[sql.Composed]:
        return [
            sql.SQL("BEGIN; SET LOCAL lock_timeout = {}").format(sql.Literal(timeout_ms)),
            *(value.within(self.schema) for value in values),
            *(unguard(self.schema, table) for table in self.tables),
            _renamed(self.schema, self.next_schema),
        ]


def _renamed(schema: str, next_schema: str) -> sql.Composed:
    return sql.SQL("ALTER SCHEMA {} RENAME TO {}").format(sql.Identifier(schema), sql.Identifier(next_schema))


def _rehearse(connection: psycopg.Connection[Any], commands: Sequence[sql.Composed]) -> None:
    """Run *commands*, the first of which begins a transaction, and roll back; a lock that is not to be had is no matter."""
    with contextlib.suppress(errors.LockNotAvailable, errors.DeadlockDetected):
        try:
            connection.execute(sql.SQL("; ").join(commands))
        finally:
            if not connection.closed:
                connection.execute("ROLLBACK")
