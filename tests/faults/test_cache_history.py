"""Processes killed, Redis frozen, emptied and promoted, fills late, commits long, a replica behind: no read is too old."""

from __future__ import annotations

import pytest
from cache_history import history


def tells_something(found):
    """Whether enough was read, written and ill-treated for "no stale read" to mean something."""
    faults = min(found[fault] for fault in ("flushes", "promotions", "killed", "freezes"))
    return found["hits"] > 500 and found["writes"] > 50 and found["behind"] > 0 and faults >= 1


def test_no_stale_read_where_delete_after_commit_has_many():
    found = history(seconds=20, reads=3000, seed=20260101, enough=tells_something)
    print(found)
    assert found["stale"] == 0
    assert tells_something(found), found
    assert found["naive_stale"] * 100 >= found["naive_reads"]


def test_checker_finds_a_planted_bug():
    assert history(seconds=90, reads=0, seed=7, broken=True)["stale"] > 0  # ends with the first


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_no_stale_read_in_a_million():
    found = history(seconds=60, reads=1_000_000, seed=20260102, spacing=1000)
    print(found)
    assert found["stale"] == 0
    assert found["naive_stale"] * 100 >= found["naive_reads"]
