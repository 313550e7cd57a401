"""A slot that stays, and what was committed since it was last passed: rows before and after, of the tables of live shards.

It is read by plain SQL (peek, work, pass), so that who dies in between sees the same again.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

import psycopg
from psycopg import errors, sql

from shardkit.core.lag import lsn_number
from shardkit.core.names import relay_slot_name
from shardkit.db.relayslots import PUBLICATION, SQL, drop_relay_slots
from shardkit.errors import CacheRelayError
from shardkit.move.ends import End
from shardkit.move.pgoutput import read_text, read_tuple

Values = Mapping[str, str | None]


class Row(NamedTuple):
    """Transaction *xid* (its lower 32 bits) left *new* in place of *old*; *whole* says that *old* has all columns."""

    schema: str
    table: str
    xid: int
    old: Values | None
    new: Values | None
    whole: bool


class Truncated(NamedTuple):
    """Transaction *xid* emptied a table."""

    schema: str
    table: str
    xid: int


class Feed:
    """The changes of one server's cached tables."""

    def __init__(self, end: End, *, cluster_id: UUID) -> None:
        self._end, self._cluster_id = end, cluster_id
        self._slot = relay_slot_name(cluster_id, end.name)

    @property
    def url(self) -> str:
        """Where the server is asked."""
        return self._end.url

    def prepare(self, *, schemas: Sequence[str], tables: Sequence[str]) -> bool:
        """Publish what is not published yet, and make the slot if there is none; whether it was made: then all that it does not
        tell of is seen by who looks from now on.
        """
        on, where = self._end.on(), {"schemas": list(schemas), "tables": list(tables), "name": PUBLICATION}
        name = sql.Identifier(PUBLICATION)
        try:
            if not self._one("publication", name=PUBLICATION):
                on.execute(sql.SQL("CREATE PUBLICATION {}").format(name))
            for schema, table in on.execute(SQL["unpublished"], where).fetchall():
                on.execute(sql.SQL("ALTER PUBLICATION {} ADD TABLE {}").format(name, sql.Identifier(schema, table)))
            if self.held_back() is None:
                on.execute(SQL["make_slot"], {"name": self._slot})
                self._end.outlast()
                return True
        except psycopg.Error as exc:
            raise self._problem(exc) from exc
        return False

    def half_told(self, *, schemas: Sequence[str], tables: Sequence[str]) -> list[str]:
        """Tables whose old rows are not in the stream as a whole (REPLICA IDENTITY other than FULL)."""
        found = self._end.on().execute(SQL["half_told"], {"schemas": list(schemas), "tables": list(tables)})
        return [table for (table,) in found]

    def held_back(self) -> int | None:
        """Bytes of WAL that the slot keeps; None where there is no slot."""
        found: int | None = self._one("slot", name=self._slot)
        return found

    def position(self) -> int:
        """How far the server's log is."""
        try:
            here, _ = self._end.on().execute(SQL["now"]).fetchone() or ("0/0", 0)
        except psycopg.Error as exc:
            raise self._problem(exc) from exc
        return lsn_number(here)

    def peek(self, *, limit: int = 2000) -> tuple[list[Row | Truncated], str, int]:
        """What comes next, where it ends, and the next transaction id of now (64 bits)."""
        asked = {"name": self._slot, "limit": limit, "publication": PUBLICATION}
        try:
            here, now = self._end.on().execute(SQL["now"]).fetchone() or ("0/0", 0)
            found = self._end.on().execute(SQL["peek"], asked).fetchall()
            return list(read(data for _, data in found)), (found[-1][0] if found else here), now
        except psycopg.Error as exc:
            raise self._problem(exc) from exc

    def pass_by(self, lsn: str) -> None:
        """All up to *lsn* is done."""
        self._end.on().execute(SQL["pass"], {"name": self._slot, "lsn": lsn})

    def remove(self) -> None:
        """Drop slot and publication, where they are; also slots from when the server was called otherwise."""
        try:
            drop_relay_slots(self._end.on(), cluster_id=self._cluster_id)
        except errors.ObjectInUse as exc:
            raise CacheRelayError(
                f"another relay reads the slot {self._slot} of server {self._end.name!r}: end it first; it is still there"
            ) from exc

    def close(self) -> None:
        """Close the connection; the slot stays."""
        self._end.close()

    def _one(self, statement: str, /, **given: Any) -> Any:
        row = self._end.on().execute(SQL[statement], given).fetchone()
        return None if row is None else row[0]

    def _problem(self, exc: psycopg.Error) -> CacheRelayError:
        text = str(exc).strip().partition("\n")[0]
        return CacheRelayError(
            f"server {self._end.name!r}: {text}. What was passed is done, the rest comes again; the relay needs "
            "wal_level = logical, a login with REPLICATION that owns the tables, and to be the only reader of its slot"
        )


def read(messages: Iterable[bytes]) -> Iterator[Row | Truncated]:
    """Rows in pgoutput messages (protocol 1)."""
    relations: dict[int, tuple[str, str, list[str]]] = {}
    xid = 0
    for message in messages:
        kind = message[:1]
        if kind == b"B":
            (xid,) = struct.unpack_from(">I", message, 17)
        elif kind == b"R":
            relations[struct.unpack_from(">I", message, 1)[0]] = _relation(message)
        elif kind in (b"I", b"U", b"D"):
            schema, table, columns = relations[struct.unpack_from(">I", message, 1)[0]]
            parts, at = {}, 5
            while at < len(message):
                part = message[at : at + 1]
                values, at = read_tuple(message, at + 1)
                parts[part] = dict(zip(columns, values, strict=True))
            yield Row(schema, table, xid, parts.get(b"O", parts.get(b"K")), parts.get(b"N"), b"O" in parts)
        elif kind == b"T":
            (count,) = struct.unpack_from(">I", message, 1)
            for oid in struct.unpack_from(f">{count}I", message, 6):
                yield Truncated(*relations[oid][:2], xid)


def _relation(message: bytes) -> tuple[str, str, list[str]]:
    schema, at = read_text(message, 5)
    table, at = read_text(message, at)
    (count,) = struct.unpack_from(">H", message, at + 1)
    at, columns = at + 3, []
    for _ in range(count):
        column, at = read_text(message, at + 1)
        columns.append(column)
        at += 8
    return schema, table, columns
