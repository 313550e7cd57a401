"""What a text of SQL does to its transaction and its session is seen through quotes and comments."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardkit.core.sqltext import controls_transactions, outlasts_transaction, outline

QUOTES = ["'{}'", "E'\\'{}'", '"{}"', "$${}$$", "$a_1${}$a_1$", "-- {}\n", "/* {} */", "/* /* {} */ ' */"]
HIDDEN = st.sampled_from(["x", "; COMMIT ;", "; SET a = 1; BEGIN", "é;end"])


@given(st.lists(st.tuples(st.sampled_from(QUOTES), HIDDEN), max_size=6))
def test_what_is_quoted_or_a_comment_is_not_looked_at(parts):
    text = "SELECT " + " || ".join(quote.format(hidden) for quote, hidden in parts)
    assert len(outline(text)) == 1
    assert not controls_transactions(text)
    assert not outlasts_transaction(text)
    assert controls_transactions(text + "\n; -- '\n commit")
    assert outlasts_transaction(text + "\n; /* ' */ set role x")


@pytest.mark.parametrize(
    "text",
    [
        "COMMIT",
        " begin;",
        "start\n transaction",
        "SELECT 1;END",
        "ROLLBACK TO here",
        "PREPARE TRANSACTION 'x'",
        "SELECT $a$ ' $a$; ABORT",
        "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; END; END",
        "SELECT a$b$ FROM t; COMMIT; SELECT c$b$ FROM t",
    ],
)
def test_control(text):
    assert controls_transactions(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "SELECT committed FROM t",
        "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT CASE WHEN true THEN 1 END; SELECT 2; END",
        "DO $$ BEGIN PERFORM 1; END $$",
        "SAVEPOINT x; RELEASE x",
        "SELECT 'unfinished; COMMIT",
        "SELECT 1 /* unfinished /* */ ; COMMIT",
        "SELECT $x$ unfinished; COMMIT",
    ],
)
def test_no_control(text):
    assert not controls_transactions(text)


@pytest.mark.parametrize(
    ("text", "lasts"),
    [
        ("SET search_path TO x", True),
        ("SET SESSION AUTHORIZATION x", True),
        ("SET LOCAL search_path TO x", False),
        ("SET CONSTRAINTS ALL DEFERRED", False),
        ("UPDATE t SET a = 1", False),
        ("ALTER TABLE t ALTER a SET NOT NULL", False),
        ("CREATE TEMPORARY TABLE t AS SELECT 1", True),
        ("SELECT 1 INTO TEMP t", True),
        ("CREATE TABLE temperatures (temp_c integer)", False),
        ("SELECT set_config('a.b', 'c', false)", True),
        ("SELECT 1; RESET ROLE", True),
    ],
)
def test_what_outlasts_its_transaction(text, lasts):
    assert outlasts_transaction(text) is lasts
