"""A schema's structure as DDL, read from PostgreSQL's own catalogs: made again on the target, and compared before the flip.

The schema has the same name on both sides, so the same text both makes an object and says whether two are alike.
"""

from __future__ import annotations

import contextlib
import re
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, LiteralString, NamedTuple, cast

import psycopg
from psycopg import errors, sql

from shardkit.core.names import GUARD_TRIGGER
from shardkit.errors import MoveRefusedError
from shardkit.sql import statements

SQL = statements("structure")
BEFORE_ROWS, AFTER_ROWS = 1, 2
_HAS_INDEX = re.compile(r" ADD CONSTRAINT \S+ (PRIMARY KEY|UNIQUE|EXCLUDE)\b")

_NOT_YET = (
    errors.UndefinedObject,
    errors.UndefinedTable,
    errors.UndefinedFunction,
    errors.UndefinedColumn,
    errors.InvalidSchemaName,
)


class Part(NamedTuple):
    """One object: ``phase`` says whether it is made before or after the rows are copied."""

    phase: int
    kind: str
    name: str
    ddl: str


@dataclass(frozen=True, slots=True)
class Table:
    """One table: the ``columns`` that are copied, those that are ``compared`` (generated ones too), and the ``key``, with its
    types, by which rows are told apart.
    """

    name: str
    columns: tuple[str, ...]
    compared: tuple[str, ...]
    key: tuple[str, ...]
    key_types: tuple[str, ...]
    size: int
    rows: int
    identity: str
    persistence: str
    oid: int

    def within(self, schema: str) -> sql.Identifier:
        """Its qualified name."""
        return sql.Identifier(schema, self.name)


def structure_of(connection: psycopg.Connection[Any], schema: str) -> list[Part]:
    """Everything in *schema*, in an order in which most of it can be made."""
    return [Part(*row) for row in connection.execute(SQL["structure"], {"schema": schema, "guard": GUARD_TRIGGER})]


def tables_of(connection: psycopg.Connection[Any], schema: str) -> list[Table]:
    """The tables of *schema*, by name."""
    rows = connection.execute(SQL["tables"], {"schema": schema})
    return [
        Table(name, tuple(columns), tuple(compared), tuple(key), tuple(types), *rest)
        for name, columns, compared, key, types, *rest in rows
    ]


def differences(ours: Iterable[Part], theirs: Iterable[Part]) -> list[str]:
    """What one side has and the other has not, or has otherwise; one line each."""
    left, right = ({(part.kind, part.name): part.ddl for part in side} for side in (ours, theirs))
    found = [f"{kind} {name} is missing on the target" for kind, name in left.keys() - right.keys()]
    found += [f"{kind} {name} is on the target only" for kind, name in right.keys() - left.keys()]
    found += [f"{key[0]} {key[1]} differs" for key in left.keys() & right.keys() if left[key] != right[key]]
    return sorted(found)


def renamed(parts: Iterable[Part], schema: str, into: str) -> list[Part]:
    """*parts* as they are called in the schema *into*."""
    return [part._replace(name=reworded(part.name, schema, into), ddl=reworded(part.ddl, schema, into)) for part in parts]


def reworded(text: str, schema: str, into: str) -> str:
    """*text* of PostgreSQL with *into* for *schema*."""
    return re.sub(rf"\b{re.escape(schema)}\b", into, text)


def retold(connection: psycopg.Connection[Any], parts: Iterable[Part], schema: str) -> list[Part]:
    """*parts* of *schema* as the release behind *connection* tells them: it makes them under another name, and undoes it."""
    stand_in = f"{schema}_retold"
    with connection.transaction(force_rollback=True):
        make(connection, [create_schema(stand_in), *renamed(parts, schema, stand_in)])
        return renamed(structure_of(connection, stand_in), stand_in, schema)


def make(connection: psycopg.Connection[Any], parts: Iterable[Part]) -> None:
    """Make *parts* in one transaction; what needs something that comes later is tried again after it. Raises
    MoveRefusedError.
    """
    todo = list(parts)
    if not todo:
        return
    with connection.transaction():
        connection.execute("SET LOCAL check_function_bodies = off")
        try:
            with connection.transaction():
                connection.execute(_script(part.ddl for part in todo))
        except _NOT_YET:
            _make_one_by_one(connection, todo)
        except psycopg.Error as exc:
            _make_one_by_one(connection, todo)  # to say which one it was
            raise _refused("the structure", exc) from exc


def make_indexes(connections: Sequence[psycopg.Connection[Any]], parts: Iterable[Part]) -> list[Part]:
    """Make the indexes (and what constraints have one) among *parts*, each connection the next one; gives what is left to make.

    One that cannot be made yet, or at all, is left too: ``make`` says which it was.
    """
    todo, left = deque[Part](), deque[Part]()
    for part in parts:
        (todo if part.kind == "index" or _HAS_INDEX.search(part.ddl) else left).append(part)

    def work(connection: psycopg.Connection[Any]) -> None:
        while todo:
            with contextlib.suppress(IndexError):
                part = todo.popleft()
                try:
                    connection.execute(_written(part.ddl))
                except psycopg.OperationalError:
                    raise
                except psycopg.Error:
                    left.appendleft(part)

    with ThreadPoolExecutor(len(connections)) as pool:
        for done in [pool.submit(work, connection) for connection in connections]:
            done.result()
    return sorted(left, key=lambda part: part.phase)


def _make_one_by_one(connection: psycopg.Connection[Any], todo: list[Part]) -> None:
    while todo:
        later: list[Part] = []
        problem: psycopg.Error | None = None
        for part in todo:
            try:
                with connection.transaction():
                    connection.execute(_script([part.ddl]))
            except _NOT_YET as exc:
                later.append(part)
                problem = problem or exc
            except psycopg.Error as exc:
                raise _refused(f"{part.kind} {part.name}", exc) from exc
        if len(later) == len(todo):
            assert problem is not None
            raise _refused(f"{later[0].kind} {later[0].name}", problem) from problem
        todo = later


def _script(ddl: Iterable[str]) -> sql.Composed:
    return sql.SQL(";\n").join(map(_written, ddl))


def _written(ddl: str) -> sql.SQL:
    """DDL that PostgreSQL itself wrote, from its catalogs."""
    return sql.SQL(cast("LiteralString", ddl))  # type: ignore[redundant-cast]  # mypy takes LiteralString for str


def _refused(what: str, exc: psycopg.Error) -> MoveRefusedError:
    reason = str(exc).strip().partition("\n")[0]
    return MoveRefusedError(
        f"{what} cannot be made on the target: {reason}. Make what it needs (an extension, role, collation or table) "
        "there first"
    )


def create_schema(schema: str) -> Part:
    """The schema itself."""
    return Part(BEFORE_ROWS, "schema", schema, sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)).as_string(None))


def stamp(connection: psycopg.Connection[Any], schema: str, tables: Iterable[Table]) -> tuple[str, int]:
    """A value that changes with any DDL in *schema*, and how many sessions are making something in it now."""
    given = {"schema": schema, "tables": [table.oid for table in tables]}
    row = connection.execute(SQL["stamp"], given, prepare=True).fetchone()
    assert row is not None
    return row[0], row[1]
