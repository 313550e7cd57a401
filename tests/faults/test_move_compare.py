"""The comparison reads a table in pieces, and sees all of it, whatever is done to the table in between."""

from __future__ import annotations

import pytest

from shardkit.core import moving as m
from shardkit.core.names import schema_name
from shardkit.errors import NotEqualError
from shardkit.move import verify
from tests.faults.lab import Load
from tests.faults.movelab import Lab

ROWS = 4000
ODD_KEYS = """
CREATE TABLE {}.odd_keys (flag boolean, code char(5), host inet, day date, at timestamptz, ago interval, n int, what text,
                          PRIMARY KEY (flag, code, host, day, at, ago));
INSERT INTO {}.odd_keys VALUES (true, 'ab', '10.0.0.1', '2026-03-04', '2026-03-04 12:00+00', '1 day -02:03', 0, 'mine')
"""


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


@pytest.fixture
def odd_keys(lab):
    """A table whose key reads otherwise as text, by its types and by what the databases say of dates."""
    home, settings = lab.place.server, {"datestyle": "SQL, DMY", "timezone": "Asia/Tokyo", "intervalstyle": "sql_standard"}
    for name in lab.servers:
        with lab.on(name) as server:
            for setting, value in settings.items():
                server.execute(f"ALTER DATABASE {server.info.dbname} SET {setting} = '{value}'")
    with lab.on(home) as source:
        schema = schema_name(0, lab.place.epoch)
        source.execute(ODD_KEYS.format(schema, schema))
    yield
    for name in lab.servers:
        with lab.on(name) as server:
            for setting in settings:
                server.execute(f"ALTER DATABASE {server.info.dbname} RESET {setting}")
    lab.end_moves()
    with lab.on(lab.place.server) as source:
        source.execute(f"DROP TABLE {schema_name(0, lab.place.epoch)}.odd_keys")


@pytest.mark.usefixtures("odd_keys")
def test_a_change_is_compared_however_its_key_is_written(lab):
    move = lab.begin(soak=False)
    schema = schema_name(0, move.epoch)

    def around(effect, do):
        if isinstance(effect, m.Lock):  # after the comparison: the stream names the key
            with lab.on(move.source) as source:
                source.execute(f"UPDATE {schema}.odd_keys SET n = n + 1")
        if isinstance(effect, m.VerifyChanged):  # it is applied; what an apply worker does wrong comes from an origin too
            with lab.on(move.target) as target:
                target.execute("SELECT pg_replication_origin_create('forger')")
                try:
                    target.execute("SELECT pg_replication_origin_session_setup('forger')")
                    target.execute(f"SET session_replication_role = replica; UPDATE {schema}.odd_keys SET what = 'forged'")
                finally:
                    target.execute("SELECT pg_replication_origin_session_reset(), pg_replication_origin_drop('forger')")
        return do(effect)

    with pytest.raises(NotEqualError, match="table odd_keys: the row with key t"):
        lab.go_on(move, around=around)
    assert lab.go_on(move, "abort").step is m.Step.ABORTED
