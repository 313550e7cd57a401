"""An export holds every shard's rows once, also when it was stopped in the middle."""

from __future__ import annotations

import csv
import json

import pytest
from click.testing import CliRunner
from fleet import Order

from shardkit import ShardKit, export
from shardkit.cli import main
from shardkit.errors import FanOutError, FanOutRefusedError, SettingsError

QUERY = "SELECT tenant_id, note, amount FROM orders"


@pytest.fixture(scope="module")
def expected(fleet):
    with ShardKit(settings=fleet.settings()) as kit:
        for number in range(30):
            with kit.begin(f"tenant {number}") as s:
                s.add_all([Order(note=f'"{n}", €\n', amount=number) for n in range(3)])
    return sorted([f"tenant {number}", f'"{n}", €\n', str(number)] for number in range(30) for n in range(3))


def csv_rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["tenant_id", "note", "amount"]
    return sorted(rows)


def test_csv_and_jsonl_hold_all_rows(fleet, expected, tmp_path):
    assert export.export(fleet.settings(), QUERY, tmp_path / "o.csv", format="csv") == 90
    assert csv_rows(tmp_path / "o.csv") == expected
    assert export.export(fleet.settings(), QUERY, tmp_path / "o.jsonl", format="jsonl") == 90
    lines = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text("utf-8").splitlines()]
    assert sorted([row["tenant_id"], row["note"], str(row["amount"])] for row in lines) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o.csv", "o.jsonl"]


def test_postgresql_reads_back_what_csv_has(fleet, tmp_path):
    """NULL and an empty text are two things, as in PostgreSQL's own CSV."""
    odd = r"""(1, NULL, 0.5::float8), (2, '', 'NaN'), (3, '\.', '-Infinity'), (4, E'a "b",\r\n', 'Infinity'), (5, ' ', NULL)"""
    query = f"SELECT * FROM (VALUES {odd}) AS odd (n, t, f)"
    export.export(fleet.settings(), query, tmp_path / "odd.csv", format="csv")
    with fleet.admin() as connection:
        connection.execute("CREATE TEMP TABLE odd (n int, t text, f float8)")
        with connection.cursor().copy("COPY odd FROM STDIN (FORMAT csv, HEADER)") as copy:
            copy.write((tmp_path / "odd.csv").read_bytes())
        same = f"SELECT count(*) FROM odd JOIN ({query}) o USING (n) WHERE (odd.*) IS NOT DISTINCT FROM (o.n, o.t, o.f)"
        assert connection.execute(same).fetchone() == (5 * len(fleet.map.placements),)


def test_jsonl_is_json_also_where_a_float_is_no_number(fleet, tmp_path):
    query = "SELECT 'NaN'::float8 AS f, ARRAY['-Infinity', 1]::float8[] AS many, 0.25::float8 AS plain"
    export.export(fleet.settings(), query, tmp_path / "f.jsonl", format="jsonl")

    def refuse(constant):
        raise AssertionError(constant)

    rows = [json.loads(line, parse_constant=refuse) for line in (tmp_path / "f.jsonl").read_text("utf-8").splitlines()]
    assert rows == [{"f": "NaN", "many": ["-Infinity", 1.0], "plain": 0.25}] * len(fleet.map.placements)


def test_parquet_holds_all_rows(fleet, expected, tmp_path):
    dataset = pytest.importorskip("pyarrow.dataset")
    assert export.export(fleet.settings(), QUERY, tmp_path / "o", format="parquet") == 90
    rows = dataset.dataset(tmp_path / "o", format="parquet").to_table().to_pylist()
    assert sorted([row["tenant_id"], row["note"], str(row["amount"])] for row in rows) == expected


def test_a_stopped_export_goes_on_and_holds_nothing_twice(fleet, expected, tmp_path, monkeypatch):
    written = export._Lines.write
    calls = []

    def stopping(self, rows):
        written(self, rows[:1])
        calls.append(rows)
        if len(calls) == 5:
            raise KeyboardInterrupt
        written(self, rows[1:])

    monkeypatch.setattr(export._Lines, "write", stopping)
    with pytest.raises(KeyboardInterrupt):
        export.export(fleet.settings(), QUERY, tmp_path / "o.csv", format="csv")
    monkeypatch.undo()
    with pytest.raises(SettingsError, match="another query"):
        export.export(fleet.settings(), "SELECT 1", tmp_path / "o.csv", format="csv")
    seen = []
    assert export.export(fleet.settings(), QUERY, tmp_path / "o.csv", format="csv", progress=lambda *p: seen.append(p)) == 90
    assert csv_rows(tmp_path / "o.csv") == expected
    assert [shards for shards, _ in seen][-1] == 16
    with pytest.raises(SettingsError, match="exists already"):
        export.export(fleet.settings(), QUERY, tmp_path / "o.csv", format="csv")


def test_a_moved_shard_is_read_where_it_went(fleet, expected, tmp_path, monkeypatch):
    opened = export.Router

    def late(settings, **given):
        router = opened(settings, **given)
        fleet.move(router.map.locate("tenant 3"), elsewhere=True)
        return router

    monkeypatch.setattr(export, "Router", late)
    assert export.export(fleet.settings(), QUERY, tmp_path / "o.csv", format="csv") == 90
    assert csv_rows(tmp_path / "o.csv") == expected


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ("DELETE FROM orders", FanOutRefusedError),
        ("WITH gone AS (DELETE FROM orders RETURNING *) SELECT * FROM gone", FanOutError),
        ("SELECT 1; DROP TABLE orders", FanOutError),
        ("SELECT nothing FROM orders", FanOutError),
    ],
)
def test_it_only_reads(fleet, expected, tmp_path, query, error):
    with pytest.raises((error, FanOutError)):
        export.export(fleet.settings(), query, tmp_path / "o.csv", format="csv")
    assert export.export(fleet.settings(), QUERY, tmp_path / "after.csv", format="csv") == 90


def test_the_command_writes_the_file(fleet, expected, tmp_path):
    arguments = ["export", QUERY, "-o", str(tmp_path / "o.csv")]
    found = CliRunner().invoke(main, arguments, env={"SHARDKIT_CATALOG_URL": fleet.catalog_url}, catch_exceptions=False)
    assert found.exit_code == 0, found.output
    assert "90 rows" in found.stderr
    assert csv_rows(tmp_path / "o.csv") == expected


def test_an_export_whose_file_was_taken_away_does_not_go_on(fleet, expected, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(export._Lines, "finish", lambda _self: (_ for _ in ()).throw(KeyboardInterrupt))
        export.export(fleet.settings(), QUERY, tmp_path / "o.csv", format="csv")
    (tmp_path / "o.csv").unlink()
    with pytest.raises(SettingsError, match="shorter than what was written"):
        export.export(fleet.settings(), QUERY, tmp_path / "o.csv", format="csv")
    assert [path.name for path in tmp_path.iterdir()] == ["o.csv.progress"]
    (tmp_path / "o.csv.progress").unlink()
    assert export.export(fleet.settings(), QUERY, tmp_path / "o.csv", format="csv") == 90
    assert csv_rows(tmp_path / "o.csv") == expected


def test_a_file_that_cannot_be_written_is_said_in_one_line(fleet, tmp_path):
    environment = {"SHARDKIT_CATALOG_URL": fleet.catalog_url, "SHARDKIT_CONFIG": None}
    result = CliRunner().invoke(main, ["export", QUERY, "-o", str(tmp_path / "none" / "o.csv")], env=environment)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "cannot be written: No such file or directory" in result.stderr
