"""Revisions no transaction can hold (CREATE INDEX CONCURRENTLY and its like), in one shard: a step at a time, resumable.

How far a shard came is written in the shard itself, in a table that exists only meanwhile: with each transactional part in
the same transaction, and before and after each statement that stands alone. Killed anywhere, the next run goes on from there.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import psycopg
from psycopg.sql import SQL, Identifier, Literal

from shardkit.core.fleet import Step
from shardkit.core.names import PROGRESS_TABLE, STEP_LOCK_CLASS
from shardkit.db.steps import (
    Connection,
    Target,
    VersionChangedError,
    not_for_programs,
    program_sql,
    read_versions,
    version_changes,
)
from shardkit.errors import MigrationError

_NAME = r'("(?:[^"]|"")+"|[\w$]+)'
_CREATE = re.compile(
    rf"\s*CREATE\s+(?:UNIQUE\s+)?INDEX\s+CONCURRENTLY\s+(?:IF\s+NOT\s+EXISTS\s+)?{_NAME}\s+ON\b", re.IGNORECASE
)
_NEEDS_NO_TRANSACTION = (psycopg.errors.ActiveSqlTransaction, psycopg.errors.InvalidTransactionTermination)
_DROP = re.compile(rf"\s*DROP\s+INDEX\s+CONCURRENTLY\s+(?:IF\s+EXISTS\s+)?{_NAME}", re.IGNORECASE)


class Part(NamedTuple):
    """Statements of one transaction, or one that stands alone."""

    statements: tuple[str, ...]
    transactional: bool


def apply_alone(
    connection: Connection, target: Target, step: Step, parts: Sequence[Part], *, lock_timeout_ms: int, patience_ms: int
) -> None:
    """Run all *parts* of *step* in *target*, from where an earlier run was stopped, and then move the version row.

    Raises what PostgreSQL says: the parts before stay, and are not run again. VersionChangedError: it is not at
    ``step.before``.
    """
    with step_lock(connection, target, step, patience_ms=patience_ms) as there:
        if there:
            return
        connection.execute(SQL("SET search_path TO {}").format(Identifier(target.schema)))
        _make_progress_table(connection, target)
        first, begun = _progress(connection, target, step, parts)

        def note(number: int, *, begun: bool) -> None:
            _note(connection, target, step, part=number, begun=begun, had=_mark(parts[: number + begun]))

        for number in range(first, len(parts)):
            part = parts[number]
            if part.transactional or not _is_index(part):
                try:
                    with connection.transaction():
                        connection.execute(SQL("SET LOCAL lock_timeout = {}").format(Literal(lock_timeout_ms)))
                        connection.execute(program_sql(part.statements))
                        note(number + 1, begun=False)
                    continue
                except _NEEDS_NO_TRANSACTION:  # all else that stands alone need not: so nobody can be killed before its note
                    if part.transactional:
                        raise
            note(number, begun=True)
            try:
                _stand_alone(
                    connection,
                    target,
                    part.statements[0],
                    again=begun and number == first,
                    lock_timeout_ms=lock_timeout_ms,
                    patience_ms=patience_ms,
                )
            except psycopg.Error:
                if not connection.closed:
                    note(number, begun=False)
                raise
            note(number + 1, begun=False)
        with connection.transaction():
            for change, counts in version_changes(target.schema, step):
                if connection.execute(change).rowcount != 1 and counts:
                    raise VersionChangedError(f"shard {target.shard} is no longer at {', '.join(step.before) or 'base'}")
            connection.execute(SQL("DROP TABLE {}").format(Identifier(target.schema, PROGRESS_TABLE)))


class step_lock:  # noqa: N801  reads as a verb phrase in a with statement
    """Inside: nobody else runs a revision in *target*. Gives True if it is at ``step.after`` already, so nothing is to do.

    Raises VersionChangedError where it is at neither end of the step.
    """

    def __init__(self, connection: Any, target: Target, step: Step, *, patience_ms: int) -> None:
        self._connection, self._target, self._step, self._patience_ms = connection, target, step, patience_ms

    def __enter__(self) -> bool:
        self._connection.execute(SQL("SET lock_timeout = {}").format(Literal(self._patience_ms)))
        self._connection.execute("SELECT pg_advisory_lock(%s, %s)", (STEP_LOCK_CLASS, self._target.shard))
        version = read_versions(self._connection, [self._target.schema]).get(self._target.schema)
        if version not in (self._step.before, self._step.after):
            self.__exit__()
            raise VersionChangedError(
                f"shard {self._target.shard} is at {', '.join(version or ()) or 'base'}, not at "
                f"{', '.join(self._step.before) or 'base'}: somebody else migrated it in between"
            )
        return version == self._step.after

    def __exit__(self, *_error: object) -> None:
        if not self._connection.closed:
            try:
                self._connection.execute("SELECT pg_advisory_unlock(%s, %s)", (STEP_LOCK_CLASS, self._target.shard))
                self._connection.execute("RESET search_path; RESET lock_timeout")
            except psycopg.OperationalError:
                self._connection.close()


def _make_progress_table(connection: Connection, target: Target) -> None:
    with connection.transaction():
        connection.execute(
            SQL(
                "CREATE TABLE IF NOT EXISTS {0} (revision text PRIMARY KEY, part integer NOT NULL, begun boolean NOT NULL); "
                "ALTER TABLE {0} ADD COLUMN IF NOT EXISTS had text"  # older releases made it without
            ).format(Identifier(target.schema, PROGRESS_TABLE))
        )
        connection.execute(not_for_programs(target.schema, PROGRESS_TABLE))


def _progress(connection: Connection, target: Target, step: Step, parts: Sequence[Part]) -> tuple[int, bool]:
    """The part to begin with, and whether a killed run had begun it. Raises MigrationError if *parts* begin otherwise."""
    row = connection.execute(
        SQL("SELECT part, begun, had FROM {} WHERE revision = %s").format(Identifier(target.schema, PROGRESS_TABLE)),
        (step.revision,),
    ).fetchone()
    if row is None:
        return 0, False
    part, begun, had = row
    if had is not None and had != _mark(parts[: part + begun]):
        raise MigrationError(
            f"revision {step.revision} was changed after shard {target.shard} had run the first {part + begun} of its parts, "
            "so nobody can say what is left; nothing was done now. Put back what was run (what comes after it may change, in "
            "another autocommit_block), or bring the shard there by hand and stamp it"
        )
    return part, begun


def _mark(parts: Sequence[Part]) -> str:
    """What tells these parts from any others."""
    return hashlib.sha256(repr([part.statements for part in parts]).encode()).hexdigest()


def _note(connection: Connection, target: Target, step: Step, *, part: int, begun: bool, had: str) -> None:
    connection.execute(
        SQL(
            "INSERT INTO {} (revision, part, begun, had) VALUES (%s, %s, %s, %s) ON CONFLICT (revision) "
            "DO UPDATE SET part = excluded.part, begun = excluded.begun, had = excluded.had"
        ).format(Identifier(target.schema, PROGRESS_TABLE)),
        (step.revision, part, begun, had),
    )


def _is_index(part: Part) -> bool:
    """Whether it builds or drops an index by name: what became of it can be seen."""
    return any(way.match(part.statements[0]) for way in (_CREATE, _DROP))


def _stand_alone(
    connection: Connection, target: Target, statement: str, *, again: bool, lock_timeout_ms: int, patience_ms: int
) -> None:
    """One statement outside any transaction. *again*: a killed run had begun it, and nobody knows how it ended."""
    created, dropped = _CREATE.match(statement), _DROP.match(statement)
    found = created or dropped
    name = _unquoted(found[1]) if found else None
    # Building or dropping an index this way lets writers through while it waits, so it may wait longer.
    wait_ms = patience_ms if name else lock_timeout_ms
    connection.execute(SQL("SET lock_timeout = {}").format(Literal(wait_ms)))
    valid = _index_valid(connection, target, name) if name else None
    if created and valid is False:
        _drop_index(connection, target, name)
    elif again and name and ((created and valid) or (dropped and valid is None)):
        return
    try:
        connection.execute(program_sql([statement]))
    except psycopg.Error:
        if created and not connection.closed and _index_valid(connection, target, name) is False:
            _drop_index(connection, target, name)
        raise
    if created and not _index_valid(connection, target, name):
        raise MigrationError(f"index {name} of shard {target.shard} is not there or not valid after it was created")


def _unquoted(name: str) -> str:
    """As PostgreSQL stores it: in UTF-8 it makes ASCII letters small, and no others."""
    return name[1:-1].replace('""', '"') if name.startswith('"') else "".join(c.lower() if c.isascii() else c for c in name)


def _index_valid(connection: Connection, target: Target, name: str | None) -> bool | None:
    """Whether the index is usable; None if it is not there."""
    row = connection.execute(
        "SELECT i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid "
        "JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s AND c.relname = %s",
        (target.schema, name),
    ).fetchone()
    return None if row is None else bool(row[0])


def _drop_index(connection: Connection, target: Target, name: str | None) -> None:
    connection.execute(SQL("DROP INDEX CONCURRENTLY IF EXISTS {}").format(Identifier(target.schema, str(name))))
