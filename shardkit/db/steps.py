"""One revision in one or several shards of a server, in one transaction with their version rows: all of it, or nothing.

The version row is changed *first*: it is the lock that makes a second runner wait, and the check that the shard stands where
the revision expects it. Connections here belong to one worker, are not pooled, and end with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, LiteralString, NamedTuple, cast

import psycopg
from psycopg import sql
from psycopg.sql import SQL, Identifier, Literal

from shardkit.core.fleet import Step, Version
from shardkit.core.names import APP_ROLE, OPERATOR_ROLE, VERSION_TABLE, parse_schema
from shardkit.core.sqltext import BETWEEN
from shardkit.errors import MigrationError, NameRejectedError

Connection = psycopg.Connection[Any]
DriverError = psycopg.Error
VERSIONS_AT_ONCE: Final = 128  # statements in one message
_HERE: Final = "shardkit_here"
_PATH: Final = SQL("SET LOCAL search_path TO {}").format(Identifier(_HERE)).as_bytes(None)
_VERSION: Final = SQL("SELECT version_num FROM {}").format(Identifier(_HERE, VERSION_TABLE)).as_bytes(None)


class Target(NamedTuple):
    """A shard, and the schema it has now."""

    shard: int
    schema: str


class VersionChangedError(MigrationError):
    """A shard no longer stands where the plan found it: somebody else migrated it; nothing was done to it."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """What an error means for the run: try again, give the server up, or call the shard failed."""

    text: str
    locked: bool = False
    down: bool = False


def trouble(exc: BaseException) -> Trouble:
    """What to make of an error of PostgreSQL; its text names the object it is about."""
    match exc:
        case psycopg.errors.LockNotAvailable() | psycopg.errors.DeadlockDetected():
            return Trouble(_told(exc), locked=True)
        case psycopg.errors.AdminShutdown() | psycopg.errors.CrashShutdown() | psycopg.errors.CannotConnectNow():
            return Trouble(_told(exc), down=True)
        case psycopg.OperationalError() | psycopg.InterfaceError() if getattr(exc, "sqlstate", None) is None:
            return Trouble(_told(exc), down=True)
    return Trouble(_told(exc))


def _told(exc: BaseException) -> str:
    return " ".join(str(exc).split()) or type(exc).__name__


def private(connection: Connection) -> Connection:
    """Let a watched *connection* take several statements in one message."""
    connection.prepare_threshold = None  # they cannot be prepared
    return connection


def stand_in(connection: Connection, schema: str, *, lock_timeout_ms: int = 0) -> Connection:
    """Put a private *connection* into *schema* for all its life."""
    private(connection)
    connection.execute(SQL("SET search_path TO {}").format(Identifier(schema)))
    connection.execute(SQL("SET lock_timeout = {}").format(Literal(lock_timeout_ms)))
    connection.autocommit = False
    return connection


def read_versions(connection: Connection, schemas: Sequence[str]) -> dict[str, Version]:
    """The version of each of *schemas*; one that is not there is left out."""
    versions: dict[str, Version] = {}
    for start in range(0, len(schemas), VERSIONS_AT_ONCE):
        part = schemas[start : start + VERSIONS_AT_ONCE]
        try:
            found = _versions(connection, part)
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):  # a shard was never migrated, or is not here
            there = connection.execute(
                "SELECT name, to_regclass(name || '.' || %s) IS NOT NULL FROM unnest(%s::text[]) AS name "
                "WHERE to_regnamespace(name) IS NOT NULL",
                (VERSION_TABLE, list(part)),
            ).fetchall()
            found = {schema: () for schema, _ in there}
            found |= _versions(connection, [schema for schema, with_table in there if with_table])
        versions |= found
    return versions


def _versions(connection: Connection, schemas: Sequence[str]) -> dict[str, Version]:
    """One message; a statement for each shard, for one over all of them is planned for longer than these are run."""
    if not schemas:
        return {}
    cursor = connection.execute(_joined(b";", [_within(_VERSION, schema) for schema in schemas]))
    versions = {}
    for schema in schemas:
        versions[schema] = tuple(sorted(version for (version,) in cursor.fetchall()))
        cursor.nextset()
    return versions


def apply(
    connection: Connection, targets: Sequence[Target], step: Step, statements: Sequence[str], *, lock_timeout_ms: int
) -> None:
    """Run the *statements* of *step* in every target: one transaction, two messages. Raises what PostgreSQL says; then
    nothing was done. VersionChangedError: a target is not at ``step.before``.
    """
    script = program_sql(statements).as_bytes(None)
    parts = [part for target in targets for part in (_within(_PATH, target.schema), script)]
    try:
        _claim(connection, targets, step, lock_timeout_ms=lock_timeout_ms)
        connection.execute(_joined(BETWEEN.encode(), [*parts, b"COMMIT"]))
    except BaseException:
        _roll_back(connection)
        raise


@lru_cache(64)
def _changes(step: Step) -> tuple[bytes, tuple[bool, ...]]:
    """``version_changes`` in the schema that ``_within`` puts in, and which of them must change a row."""
    changes = list(version_changes(_HERE, step))
    return b"; ".join(change.as_bytes(None) for change, _ in changes), tuple(counts for _, counts in changes)


def _within(script: bytes, schema: str) -> bytes:
    """*script*, which is ours, in *schema*: composing it anew for each shard took longer than the server needs for it."""
    return script.replace(_HERE.encode(), _checked(schema))


@lru_cache(8192)
def _checked(schema: str) -> bytes:
    if parse_schema(schema) is None:
        raise NameRejectedError(f"{schema!r} is no shard's schema; nothing was done")
    return schema.encode()


def _joined(between: bytes, parts: Sequence[bytes]) -> bytes:
    """One message of statements that were composed."""
    return between.join(parts)


def program_sql(statements: Iterable[str]) -> sql.Composed:
    """SQL of the program's revisions: part of the program, as safe as its code."""
    parts = [SQL(cast("LiteralString", statement)) for statement in statements]  # type: ignore[redundant-cast]  # not to pyright
    return SQL(BETWEEN).join(parts)


def _claim(connection: Connection, targets: Sequence[Target], step: Step, *, lock_timeout_ms: int) -> None:
    """Begin, and move every target's version row; the row locks keep others out until the end."""
    parts = [SQL("BEGIN; SET LOCAL lock_timeout = {}").format(Literal(lock_timeout_ms)).as_bytes(None)]
    owners: list[Target | None] = [None, None]
    changes, counted = _changes(step)
    for target in targets:
        parts.append(_within(changes, target.schema))
        owners += [target if counts else None for counts in counted]
    cursor = connection.execute(_joined(b"; ", parts))
    for owner in owners:
        if owner is not None and cursor.rowcount != 1:
            raise VersionChangedError(
                f"shard {owner.shard} is no longer at {', '.join(step.before) or 'base'}: somebody else migrated it in between"
            )
        cursor.nextset()


def version_changes(schema: str, step: Step) -> Iterator[tuple[sql.Composed, bool]]:
    """Statements that take a version table from ``step.before`` to ``step.after``, and whether each must change one row."""
    table = Identifier(schema, VERSION_TABLE)
    gone = sorted(set(step.before) - set(step.after))
    new = sorted(set(step.after) - set(step.before))
    if not step.before:
        yield version_table(schema), False
        yield not_for_programs(schema, VERSION_TABLE), False
    for old in gone[len(new) :]:
        yield SQL("DELETE FROM {} WHERE version_num = {}").format(table, Literal(old)), True
    for old, fresh in zip(gone, new, strict=False):
        yield SQL("UPDATE {} SET version_num = {} WHERE version_num = {}").format(table, Literal(fresh), Literal(old)), True
    for there, fresh in enumerate(new[len(gone) :], start=len(step.before)):
        yield (
            SQL("INSERT INTO {0} SELECT {1} WHERE (SELECT count(*) FROM {0}) = {2}").format(
                table, Literal(fresh), Literal(there)
            ),
            True,
        )


def version_table(schema: str) -> sql.Composed:
    """The version table, as Alembic makes it."""
    return SQL(
        "CREATE TABLE IF NOT EXISTS {} (version_num varchar(32) NOT NULL, "
        "CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num))"
    ).format(Identifier(schema, VERSION_TABLE))


def not_for_programs(schema: str, table: str) -> sql.Composed:
    """Take from our roles what they get on every new table of a shard."""
    named = Identifier(schema, table)
    return SQL("REVOKE ALL ON {} FROM {}, {}").format(named, Identifier(APP_ROLE), Identifier(OPERATOR_ROLE))


def stamp(connection: Connection, targets: Sequence[Target], version: Version) -> None:
    """Say that the targets are at *version*, without running anything."""
    with connection.transaction():
        for target in targets:
            table = Identifier(target.schema, VERSION_TABLE)
            connection.execute(version_table(target.schema))
            connection.execute(not_for_programs(target.schema, VERSION_TABLE))
            connection.execute(SQL("DELETE FROM {}").format(table))
            for revision in version:
                connection.execute(SQL("INSERT INTO {} VALUES ({})").format(table, Literal(revision)))


def _roll_back(connection: Connection) -> None:
    if not connection.closed:
        try:
            connection.execute("ROLLBACK")
        except psycopg.Error:
            connection.close()
