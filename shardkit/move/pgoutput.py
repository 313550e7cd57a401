"""Reads PostgreSQL's replication messages (pgoutput, protocol 1) as far as a move needs: whose, which table, which key."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from shardkit.core.names import MARKS_TABLE, SERVER_SCHEMA

Key = tuple[str | None, ...]


class Changed(NamedTuple):
    """A row of *table* came, changed or went; ``applied`` by a subscription, or by a client of this server."""

    table: str
    key: Key
    applied: bool


class Emptied(NamedTuple):
    """*table* was truncated."""

    table: str
    applied: bool


class Marked(NamedTuple):
    """Mark number *n* passed."""

    n: int


class Committed(NamedTuple):
    """A transaction ended at *lsn*."""

    lsn: int


Event = Changed | Emptied | Marked | Committed


@dataclass(slots=True)
class Reader:
    """Gives the events of each message. *keys* are the key columns of each table by its name."""

    keys: Mapping[str, tuple[str, ...]]
    _relations: dict[int, tuple[str, list[int]]] = field(default_factory=dict)
    _applied: bool = False

    def read(self, message: bytes) -> list[Event]:
        """Events of one message."""
        match message[:1]:
            case b"B":
                self._applied = False
            case b"O":
                self._applied = True
            case b"C":
                return [Committed(struct.unpack_from(">Q", message, 10)[0])]
            case b"R":
                self._relation(message)
            case b"I" | b"U" | b"D":
                return self._row(message)
            case b"T":
                count = struct.unpack_from(">I", message, 1)[0]
                tables = struct.unpack_from(f">{count}I", message, 6)
                return [Emptied(self._relations[oid][0], self._applied) for oid in tables]
            case _:
                pass
        return []

    def _relation(self, message: bytes) -> None:
        oid = struct.unpack_from(">I", message, 1)[0]
        schema, at = read_text(message, 5)
        table, at = read_text(message, at)
        count = struct.unpack_from(">H", message, at + 1)[0]
        at += 3
        columns = []
        for _ in range(count):
            column, at = read_text(message, at + 1)
            columns.append(column)
            at += 8
        if (schema, table) == (SERVER_SCHEMA, MARKS_TABLE):
            self._relations[oid] = "", [columns.index("n")]
        else:
            self._relations[oid] = table, [columns.index(name) for name in self.keys[table]]

    def _row(self, message: bytes) -> list[Event]:
        oid = struct.unpack_from(">I", message, 1)[0]
        table, places = self._relations[oid]
        events: list[Event] = []
        at = 5
        while at < len(message):
            values, at = read_tuple(message, at + 1)
            key = tuple(values[place] for place in places)
            if not table:
                return [Marked(int(key[0] or 0))] if message[:1] == b"I" else []
            events.append(Changed(table, key, self._applied))
        return events


def read_text(message: bytes, at: int) -> tuple[str, int]:
    """A name at *at*, and where it ends."""
    end = message.index(b"\0", at)
    return message[at:end].decode(), end + 1


def read_tuple(message: bytes, at: int) -> tuple[list[str | None], int]:
    """The values of a row at *at*, and where it ends; None for NULL, and for what did not change and is not sent."""
    count = struct.unpack_from(">H", message, at)[0]
    at += 2
    values: list[str | None] = []
    for _ in range(count):
        kind = message[at : at + 1]
        at += 1
        if kind == b"t":
            size = struct.unpack_from(">I", message, at)[0]
            values.append(message[at + 4 : at + 4 + size].decode())
            at += 4 + size
        else:
            values.append(None)
    return values, at
