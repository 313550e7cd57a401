"""Replication messages are read as PostgreSQL documents them."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from shardkit.move.pgoutput import Changed, Committed, Emptied, Marked, Reader

OID, MARKS = 77, 78


def text(value):
    return value.encode() + b"\0"


def relation(oid, schema, table, columns):
    head = b"R" + struct.pack(">I", oid) + text(schema) + text(table) + b"d" + struct.pack(">H", len(columns))
    return head + b"".join(b"\1" + text(name) + struct.pack(">Ii", 25, -1) for name in columns)


def row(values):
    cells = (
        b"n" if v is None else b"u" if v is ... else b"t" + struct.pack(">I", len(v.encode())) + v.encode() for v in values
    )
    return struct.pack(">H", len(values)) + b"".join(cells)


def reader():
    made = Reader({"orders": ("b", "a")})
    assert made.read(b"B" + bytes(20)) == []
    assert made.read(relation(OID, "s0001_e1", "orders", ["a", "note", "b"])) == []
    assert made.read(relation(MARKS, "shardkit", "move_marks", ["lane", "n"])) == []
    return made


values = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=20)


@given(values, values, st.none() | values | st.just(...))
def test_keys_come_in_the_order_of_the_key(a, b, note):
    found = reader().read(b"I" + struct.pack(">I", OID) + b"N" + row([a, note, b]))
    assert found == [Changed("orders", (b, a), applied=False)]


@given(values, values)
def test_an_update_of_the_key_changes_two_rows(old, new):
    message = b"U" + struct.pack(">I", OID) + b"K" + row([old, None, "1"]) + b"N" + row([new, "x", "1"])
    assert [event.key for event in reader().read(message)] == [("1", old), ("1", new)]


def test_a_delete_names_the_old_key():
    found = reader().read(b"D" + struct.pack(">I", OID) + b"K" + row(["1", None, "2"]))
    assert found == [Changed("orders", ("2", "1"), applied=False)]


def test_what_a_subscription_applied_is_told_apart_until_the_next_transaction():
    made = reader()
    insert = b"I" + struct.pack(">I", OID) + b"N" + row(["1", "", "2"])
    made.read(b"O" + bytes(8) + text("pg_16400"))
    assert made.read(insert)[0].applied
    made.read(b"B" + bytes(20))
    assert not made.read(insert)[0].applied


def test_truncation_marks_and_commits():
    made = reader()
    assert made.read(b"T" + struct.pack(">IBI", 1, 0, OID)) == [Emptied("orders", applied=False)]
    assert made.read(b"I" + struct.pack(">I", MARKS) + b"N" + row(["out", "12"])) == [Marked(12)]
    assert made.read(b"D" + struct.pack(">I", MARKS) + b"K" + row(["out", "12"])) == []
    assert made.read(b"C\0" + struct.pack(">QQQ", 5, 99, 0)) == [Committed(99)]
    assert made.read(b"M\0" + bytes(20)) == []
