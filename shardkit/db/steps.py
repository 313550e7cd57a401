"""One revision in one or several shards of a server, in one transaction with their version rows: all of it, or nothing.

The version row is changed *first*: it is the lock that makes a second runner wait, and the check that the shard stands where
the revision expects it. Connections here belong to one worker, are not pooled, and end with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, LiteralString, NamedTuple, cast

import psycopg
from psycopg import sql
from psycopg.sql import SQL, Composable, Identifier, Literal

from shardkit.core.fleet import Step, Version
from shardkit.core.names import APP_ROLE, OPERATOR_ROLE, VERSION_TABLE
from shardkit.errors import MigrationError

Connection = psycopg.Connection[Any]
DriverError = psycopg.Error
VERSIONS_AT_ONCE: Final = 128  # one statement over more shards plans slower than it reads


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
    """Let *connection*'s backend notice within two seconds that its runner was killed, so that no orphan goes on for long."""
    connection.prepare_threshold = None  # several statements in one message cannot be prepared
    connection.execute("SET client_connection_check_interval = 2000")
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
    rows = connection.execute(
        "SELECT name, to_regclass(name || '.' || %s) IS NOT NULL FROM unnest(%s::text[]) AS name "
        "WHERE to_regnamespace(name) IS NOT NULL",
        (VERSION_TABLE, list(schemas)),
    ).fetchall()
    versions: dict[str, list[str]] = {schema: [] for schema, _ in rows}
    with_table = sorted(schema for schema, there in rows if there)
    for start in range(0, len(with_table), VERSIONS_AT_ONCE):
        parts = [
            SQL("SELECT {}, version_num FROM {}").format(Literal(schema), Identifier(schema, VERSION_TABLE))
            for schema in with_table[start : start + VERSIONS_AT_ONCE]
        ]
        for schema, version in connection.execute(SQL(" UNION ALL ").join(parts)):
            versions[schema].append(version)
    return {schema: tuple(sorted(found)) for schema, found in versions.items()}


def apply(
    connection: Connection, targets: Sequence[Target], step: Step, statements: Iterable[str], *, lock_timeout_ms: int
) -> None:
    """Run the *statements* of *step* in every target: one transaction, two messages. Raises what PostgreSQL says; then
    nothing was done. VersionChangedError: a target is not at ``step.before``.
    """
    script = program_sql(statements)
    body = [SQL("SET LOCAL search_path TO {};\n{}").format(Identifier(target.schema), script) for target in targets]
    try:
        _claim(connection, targets, step, lock_timeout_ms=lock_timeout_ms)
        connection.execute(SQL(";\n").join([*body, SQL("COMMIT")]))
    except BaseException:
        _roll_back(connection)
        raise


def program_sql(statements: Iterable[str]) -> sql.Composed:
    """SQL of the program's revisions: part of the program, as safe as its code."""
    parts = [SQL(cast("LiteralString", statement)) for statement in statements]  # type: ignore[redundant-cast]  # not to pyright
    return SQL(";\n").join(parts)


def _claim(connection: Connection, targets: Sequence[Target], step: Step, *, lock_timeout_ms: int) -> None:
    """Begin, and move every target's version row; the row locks keep others out until the end."""
    parts: list[Composable] = [SQL("BEGIN; SET LOCAL lock_timeout = {}").format(Literal(lock_timeout_ms))]
    owners: list[Target | None] = [None, None]
    for target in targets:
        for change, counts in version_changes(target.schema, step):
            parts.append(change)
            owners.append(target if counts else None)
    cursor = connection.execute(SQL("; ").join(parts))
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
        yield SQL("REVOKE ALL ON {} FROM {}, {}").format(table, Identifier(APP_ROLE), Identifier(OPERATOR_ROLE)), False
    for old in gone[len(new) :]:
        yield SQL("DELETE FROM {} WHERE version_num = {}").format(table, Literal(old)), True
    for old, fresh in zip(gone, new, strict=False):
        yield SQL("UPDATE {} SET version_num = {} WHERE version_num = {}").format(table, Literal(fresh), Literal(old)), True
    for fresh in new[len(gone) :]:
        yield (
            SQL("INSERT INTO {0} SELECT {1} WHERE (SELECT count(*) FROM {0}) = {2}").format(
                table, Literal(fresh), Literal(len(step.before))
            ),
            True,
        )


def version_table(schema: str) -> sql.Composed:
    """The version table, as Alembic makes it."""
    return SQL(
        "CREATE TABLE IF NOT EXISTS {} (version_num varchar(32) NOT NULL, "
        "CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num))"
    ).format(Identifier(schema, VERSION_TABLE))


def stamp(connection: Connection, targets: Sequence[Target], version: Version) -> None:
    """Say that the targets are at *version*, without running anything."""
    with connection.transaction():
        for target in targets:
            table = Identifier(target.schema, VERSION_TABLE)
            connection.execute(version_table(target.schema))
            connection.execute(SQL("DELETE FROM {}").format(table))
            for revision in version:
                connection.execute(SQL("INSERT INTO {} VALUES ({})").format(table, Literal(revision)))


def _roll_back(connection: Connection) -> None:
    if not connection.closed:
        try:
            connection.execute("ROLLBACK")
        except psycopg.Error:
            connection.close()
