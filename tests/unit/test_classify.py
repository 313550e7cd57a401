"""Which SQL text leaves something behind in a session: what does must be seen, and what does not must not cost a reconnect."""

from __future__ import annotations

import pytest

from shardkit.db.classify import changes_session


@pytest.mark.parametrize(
    "statement",
    [
        "SET search_path TO public",
        "-- a comment\nSET ROLE other",
        "/* one */ -- two\n RESET ALL",
        "SELECT 1; SET x = 1",
        "DO $$ BEGIN END $$",
        "SELECT set_config('a', 'b', false)",
        "CREATE TEMP TABLE t (a int)",
        b"LISTEN somewhere",
    ],
)
def test_text_that_changes_the_session(statement):
    assert changes_session(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT 1",
        "SET LOCAL search_path TO x",
        "SET TRANSACTION READ ONLY",
        "UPDATE t SET a = 1",
        "-- what the login may do\nSELECT 1",
        "-- prepare to\n-- call\nSELECT 1",
        "/* do set reset */ SELECT 1",
        "SELECT 'x' AS call",
    ],
)
def test_text_that_does_not(statement):
    assert not changes_session(statement)
