"""Compares the rows of both sides by content: all of them by ranges of keys while writes go on, then only what changed since.

A row's content is one 64-bit hash of its columns' text; a range's is their sum, which no order of rows can change. What is
unequal while writes go on may just be under way, so it becomes *pending*, like every key that changes after its range was
compared. Under the fence nothing is under way: then every pending key has to be equal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, LiteralString, cast

from psycopg import sql

from shardkit.core.moving import Busy
from shardkit.errors import NotEqualError
from shardkit.move.ends import SQL, End
from shardkit.move.pgoutput import Key
from shardkit.move.stream import ChangeStream
from shardkit.move.structure import Table

RANGE_ROWS: Final = 20_000
PIECE_BLOCKS: Final = 64
"""What is read at once of a table that is read in the order of its disk: 2 ms of work, then others have their turn."""
KEYS_AT_ONCE: Final = 5_000
WHOLE_BYTES: Final = 64 << 20

_BOUND: Final = sql.SQL("SELECT ARRAY[{texts}] FROM {rows} t WHERE {within} ORDER BY {keys} OFFSET {offset} LIMIT 1")
_RANGE: Final = sql.SQL("SELECT count(*), coalesce(sum({hash}), 0)::text FROM {rows} t WHERE {within}")
_BLOCKS: Final = sql.SQL("t.ctid >= '({},0)' AND t.ctid < '({},0)'")
_ROWS: Final = sql.SQL("SELECT ARRAY[{texts}], {hash} FROM {rows} t WHERE {within}")
_KEYS: Final = sql.SQL(
    "SELECT w.place, {hash} FROM {rows} t JOIN unnest({arrays}) WITH ORDINALITY AS w ({names}, place) ON {join}"
)
"""Rows by the place of their key among those asked for: the stream writes a key as its type does (``t``), a cast to text may
write it otherwise (``true``, ``10.0.0.1/32``, a ``char(n)`` without its blanks)."""


Content = tuple[int, int]
"""Number of rows, and the sum of their hashes."""


@dataclass(slots=True)
class Verifier:
    """Verifies *tables* of *schema*; *changes* follows the source, *watch* the target, where only the stream may write."""

    source: End
    target: End
    schema: str
    tables: Sequence[Table]
    changes: ChangeStream
    watch: ChangeStream
    pending: dict[str, dict[Key, int]] = field(default_factory=dict)
    rows: int = 0
    _doubted: dict[str, dict[Key, int]] = field(default_factory=dict)
    _emptied: set[str] = field(default_factory=set)
    _ahead: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    _there: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))

    def everything(self, compared: Callable[[int], object] = lambda _rows: None) -> None:
        """Compare all ranges of all tables; what is unequal becomes pending. *compared* hears the number of rows."""
        self._compare_ranges(self.tables, compared)

    def again(self, *, mark: Callable[[], object]) -> int:
        """Compare what is pending; *mark* returns when all that was written before it is applied. How many keys stay pending.

        Raises NotEqualError for a key that stays unequal and was not written to in between: nothing will make it equal.
        """
        emptied = self._emptied | self.changes.take_emptied()
        self._compare_ranges([table for table in self.tables if table.name in emptied], lambda _rows: None)
        self._emptied = set()
        self._take()
        before = {name: dict(keys) for name, keys in self.pending.items()}
        mark()
        self._compare()
        self.nobody_else()
        self._take()
        for name, keys in self.pending.items():
            for key, number in keys.items():
                if before.get(name, {}).get(key) == number:
                    if self._doubted.get(name, {}).get(key) == number:
                        raise self._unequal(name, key)
                    self._doubted.setdefault(name, {})[key] = number
        return sum(map(len, self.pending.values()))

    def finally_equal(self, *, deadline: float) -> None:
        """Under the fence, with every change streamed: all pending keys are equal, or NotEqualError. Busy if it takes too
        long.
        """
        self._emptied |= self.changes.take_emptied()
        if self._emptied:
            raise Busy
        self._take()
        self._compare(deadline=deadline)
        self.nobody_else()
        for name, keys in self.pending.items():
            for key in keys:
                raise self._unequal(name, key)

    def nobody_else(self) -> None:
        """Raise NotEqualError if anybody but the stream wrote to the target."""
        for name, key in self.watch.foreign.items():
            raise NotEqualError(
                f"somebody wrote to table {name} of the copy on {self.target.name!r} (key {_shown(key)}) while it was "
                "being made: the "
                "source goes on serving. Find out who, then `shardkit moves abort` and move again"
            )

    def close(self) -> None:
        """Stop following."""
        self.changes.close()
        self.watch.close()
        for pool in (self._ahead, self._there):
            pool.shutdown(cancel_futures=True)

    def _take(self) -> None:
        for name, keys in self.changes.take_changed().items():
            self.pending.setdefault(name, {}).update(keys)

    def _compare(self, *, deadline: float | None = None) -> None:
        """Drop from ``pending`` what is equal on both sides."""
        for table in self.tables:
            keys = self.pending.get(table.name, {})
            todo = list(keys)
            for start in range(0, len(todo), KEYS_AT_ONCE):
                if deadline is not None and time.monotonic() > deadline:
                    raise Busy
                part = todo[start : start + KEYS_AT_ONCE]
                theirs = self._there.submit(self._by_key, self.target, table, part)
                ours = self._by_key(self.source, table, part)
                there = theirs.result()
                for key in part:
                    if ours.get(key) == there.get(key):
                        del keys[key]
            if not keys:
                self.pending.pop(table.name, None)

    def _by_key(self, end: End, table: Table, keys: Sequence[Key]) -> dict[Key, int]:
        table = self._on(end, table)
        names = [sql.Identifier(f"k{n}") for n in range(len(table.key))]
        query = _KEYS.format(
            hash=_hash(table),
            rows=self._rows(end, table),
            names=sql.SQL(", ").join(names),
            arrays=sql.SQL(", ").join(sql.SQL("%s::text[]::{}").format(key_type(f"{kind}[]")) for kind in table.key_types),
            join=sql.SQL(" AND ").join(
                sql.SQL("t.{} = w.{}").format(sql.Identifier(column), name)
                for column, name in zip(table.key, names, strict=True)
            ),
        )
        columns = [[key[n] for key in keys] for n in range(len(table.key))]
        return {keys[place - 1]: h for place, h in end.on("verify").execute(query, columns, prepare=True)}

    def _compare_ranges(self, tables: Sequence[Table], compared: Callable[[int], object]) -> None:
        """Each side goes through the ranges at its own pace; where one ends is looked up one range ahead.

        No side waits for the other: what changes between the two looks is followed, and compared again by its key.
        A small table is tried as a whole first: reading it in the order of its disk is several times faster than by its key.
        """
        found = []
        for table in tables:
            for lower, upper in [(None, None)] if table.size <= WHOLE_BYTES else self._ranges(table):
                found.append((table, lower, upper, *self._both(table, lower, upper, compared)))
        for table, lower, upper, ours, theirs in found:
            if theirs.result() == ours:
                continue
            if (lower, upper) != (None, None) or ours[0] <= RANGE_ROWS:
                self._doubt(table, lower, upper)
                continue
            for bounds in self._ranges(table):
                mine, others = self._both(table, *bounds, compared)
                if others.result() != mine:
                    self._doubt(table, *bounds)

    def _both(
        self, table: Table, lower: Key | None, upper: Key | None, compared: Callable[[int], object]
    ) -> tuple[Content, Future[Content]]:
        """A range's content here, and there as soon as that side gets to it."""

        def heard(rows: int) -> None:
            self.rows += rows
            compared(rows)

        theirs = self._there.submit(self._content, self.target, table, lower, upper, lambda _rows: None)
        return self._content(self.source, table, lower, upper, heard), theirs

    def _ranges(self, table: Table) -> Iterator[tuple[Key | None, Key | None]]:
        lower, upper = None, self._bound(table, None)
        while upper is not None:
            ahead = self._ahead.submit(self._bound, table, upper)
            yield lower, upper
            lower, upper = upper, ahead.result()
        yield lower, None

    def _bound(self, table: Table, lower: Key | None) -> Key | None:
        """The key that ends the range after *lower*; None for the last one."""
        query = _BOUND.format(
            texts=_texts(table),
            rows=self._rows(self.source, table),
            within=_within(table, lower, None),
            keys=sql.SQL(", ").join(sql.Identifier("t", column) for column in table.key),
            offset=RANGE_ROWS - 1,
        )
        row = self.source.on("bounds").execute(query).fetchone()
        return None if row is None else tuple(row[0])

    def _content(
        self, end: End, table: Table, lower: Key | None, upper: Key | None, compared: Callable[[int], object]
    ) -> Content:
        """What is in a range. All of a table is read in pieces: a row that stays as it is is in one of them, and who does not
        is followed. Only where the whole table was written anew in between (VACUUM FULL) rows have moved that did not change.
        """
        if (lower, upper) != (None, None):
            return self._sum(end, table, [_within(self._on(end, table), lower, upper)], compared)
        while True:
            blocks, file = self._file(end, table)
            found = self._sum(end, table, self._pieces(blocks), compared)
            if self._file(end, table)[1] == file:
                return found

    def _sum(self, end: End, table: Table, parts: Iterable[sql.Composable], compared: Callable[[int], object]) -> Content:
        number, total = 0, 0
        for within in parts:
            query = _RANGE.format(hash=_hash(table), rows=self._rows(end, table), within=within)
            row = end.on("verify").execute(query).fetchone()
            assert row is not None
            number, total = number + row[0], total + int(row[1])
            compared(row[0])
        return number, total

    def _file(self, end: End, table: Table) -> tuple[int, int]:
        """How many blocks the table has on *end*, and in which file."""
        name = table.within(self._schema_on(end)).as_string(None)
        row = end.on("verify").execute(SQL["file"], {"table": name}).fetchone()
        assert row is not None
        return row[0], row[1]

    def _schema_on(self, end: End) -> str:
        del end
        return self.schema

    def _on(self, end: End, table: Table) -> Table:
        """*table* with its key's types as they are called on *end*."""
        del end
        return table

    def _pieces(self, blocks: int) -> Iterator[sql.Composable]:
        for first in range(0, blocks, PIECE_BLOCKS):
            yield _BLOCKS.format(first, first + PIECE_BLOCKS)

    def _doubt(self, table: Table, lower: Key | None, upper: Key | None) -> None:
        """Make pending what is unequal in a range."""
        ours, theirs = (
            {tuple(key): h for key, h in end.on("verify").execute(self._hashes(end, table, lower, upper))}
            for end in (self.source, self.target)
        )
        pending = self.pending.setdefault(table.name, {})
        for key in ours.keys() | theirs.keys():
            if ours.get(key) != theirs.get(key):
                pending.setdefault(key, 0)

    def _hashes(self, end: End, table: Table, lower: Key | None, upper: Key | None) -> sql.Composed:
        rows, within = self._rows(end, table), _within(self._on(end, table), lower, upper)
        return _ROWS.format(texts=_texts(table), hash=_hash(table), rows=rows, within=within)

    def _rows(self, end: End, table: Table) -> sql.Composable:
        """What of *table* is compared on *end*."""
        return sql.SQL("ONLY {}").format(table.within(self._schema_on(end)))

    def _unequal(self, name: str, key: Key) -> NotEqualError:
        return NotEqualError(
            f"table {name}: the row with key {_shown(key)} is not the same on {self.source.name!r} and "
            f"{self.target.name!r}: the source "
            "goes on serving, nothing was switched over. `shardkit moves abort` drops the copy"
        )


def _texts(table: Table) -> sql.Composed:
    return sql.SQL(", ").join(sql.SQL("t.{}::text").format(sql.Identifier(column)) for column in table.key)


def _hash(table: Table) -> sql.Composed:
    """One number for a row's content. Each column counts as its text, byte by byte, whatever its type thinks is equal.

    Not the row's own text: its quoting costs four times as much as everything else (3.4 against 0.8 microseconds a row).
    """
    columns = sql.SQL(", ").join(sql.SQL('t.{}::text COLLATE "C"').format(sql.Identifier(c)) for c in table.compared)
    return sql.SQL("hash_record_extended(ROW({}), 0)").format(columns)


def _within(table: Table, lower: Key | None, upper: Key | None) -> sql.Composable:
    keys = sql.SQL(", ").join(sql.Identifier("t", column) for column in table.key)
    bounds = [(sql.SQL(">"), lower), (sql.SQL("<="), upper)]
    parts = [
        sql.SQL("({}) {} ({})").format(keys, sign, _values(table.key_types, bound))
        for sign, bound in bounds
        if bound is not None
    ]
    return sql.SQL(" AND ").join(parts) if parts else sql.SQL("true")


def _values(types: Iterable[str], values: Key) -> sql.Composed:
    return sql.SQL(", ").join(
        sql.SQL("CAST({} AS {})").format(sql.Literal(value), key_type(kind)) for value, kind in zip(values, types, strict=True)
    )


def key_type(name: str) -> sql.SQL:
    """A type's name as PostgreSQL's format_type wrote it."""
    return sql.SQL(cast("LiteralString", name))  # type: ignore[redundant-cast]  # mypy takes it for str


def _shown(key: Key) -> str:
    return ", ".join(str(part) for part in key) or "unknown"
