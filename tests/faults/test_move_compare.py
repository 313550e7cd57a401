"""The comparison reads a table in pieces, and sees all of it, whatever is done to the table in between."""

from __future__ import annotations

import pytest

from shardkit.core import moving as m
from shardkit.core.names import schema_name
from shardkit.move import verify
from tests.faults.lab import Load
from tests.faults.movelab import Lab

ROWS = 4000


@pytest.fixture(scope="module")
def lab(local_cluster):
    with Lab.on_cluster(local_cluster) as made:
        with made.on(made.place.server) as source:
            schema = schema_name(0, made.place.epoch)
            source.execute(f"CREATE TABLE {schema}.bulk (id int PRIMARY KEY, filler text)")
            source.execute(f"INSERT INTO {schema}.bulk SELECT n, repeat('x', 100) FROM generate_series(1, {ROWS}) n")
        yield made


def compared(lab, monkeypatch, *, once):
    """How many rows of the table each look at its source found, for each comparison (a fence that was changed under asks for
    another one), where *once* is called after the first look.
    """
    monkeypatch.setattr(verify, "PIECE_BLOCKS", 8)
    seen, told = {}, []

    def watched(verifier, end, table, parts, compared, *, real=verify.Verifier._sum):
        def heard(rows):
            compared(rows)
            if table.name == "bulk" and end is verifier.source:
                seen.setdefault(verifier.changes, []).append(rows)
                if sum(map(len, seen.values())) == 1:
                    once()

        return real(verifier, end, table, parts, heard)

    def report(news):
        if news.step == "verify" and news.done:
            told.append(news.done)

    monkeypatch.setattr(verify.Verifier, "_sum", watched)
    move = lab.begin(soak=False)
    with Load(lab) as load:
        assert lab.go_on(move, report=report).step is m.Step.FINISHED
        load.wait_for(3)
    assert lab.complaints(load) == []
    assert len(told) >= 5
    return list(seen.values())


def test_a_table_is_read_in_pieces(lab, monkeypatch):
    seen = compared(lab, monkeypatch, once=lambda: None)
    assert all(len(looks) >= 5 for looks in seen)
    assert {sum(looks) for looks in seen} == {ROWS}  # nobody writes to it: each row is in one piece


def test_a_table_that_is_written_anew_in_between_is_read_again(lab, monkeypatch):
    schema = schema_name(0, lab.place.epoch)

    def rewrite():
        with lab.on(lab.place.server) as source:
            source.execute(f"VACUUM FULL {schema}.bulk")

    seen = compared(lab, monkeypatch, once=rewrite)
    assert sum(seen[0]) > ROWS * 1.05
