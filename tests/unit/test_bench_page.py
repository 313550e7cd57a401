"""The page of results says what the reports say, misses and doubts first; it is never edited by hand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from rich.progress import Progress

from benchmarks import NAMES, lines, page, report
from benchmarks import __main__ as command
from benchmarks.harness import Bench


def made(name: str = "routing", **given: Any) -> Bench:
    bench = Bench(name=name, question="Is it?", progress=Progress(disable=True), **given)
    bench.ratio("read_16", ours=[[1.0, 2.0]] * 7, other=[[2.0, 4.0]] * 7, goal=0.85)
    bench.record("write_16", [1.0, 1.1, 1.9], unit="ratio", goal=1.0)
    bench.record("memory_mb", [17.0], unit="MB")
    bench.skip("citus", "not installed")
    return bench


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, path in {"RESULTS": "results", "PAGE": "page.md", "PLOTS": "plots"}.items():
        monkeypatch.setattr(page, name, tmp_path / path)
    (tmp_path / "reports").mkdir()
    return tmp_path


def test_the_page_in_the_documentation_is_what_the_reports_make() -> None:
    assert page.PAGE.read_text("utf-8") == page.text(page.kept()), "make it anew: python -m benchmarks page"


def test_the_pictures_are_those_of_the_reports() -> None:
    reports = page.kept()
    assert {file.stem for file in page.PLOTS.iterdir()} == {found.benchmark for found in reports}
    for found in reports:
        picture = (page.PLOTS / f"{found.benchmark}.svg").read_text("utf-8")
        assert f"{found.commit}, {found.when}" in picture, "make it anew: python -m benchmarks page"


def test_kept_reports_are_small_and_of_benchmarks_there_are() -> None:
    files = list(page.RESULTS.glob("*.json"))
    assert files
    for file in files:
        assert file.stat().st_size <= page.LARGEST
        assert report.read(file).benchmark == file.stem
        assert file.stem in NAMES


def test_what_was_missed_is_said_first_and_noise_is_named() -> None:
    text = page.text([made().report()])
    short = text[text.index("## In short") : text.index("## routing")]
    assert "1 of 2 goals are met" in short
    assert re.search(r"\| \[routing\]\(#routing\) \| `write_16` \| 1\.1 \| 1\.05 to 1\.5 \| ≤ 1 \|", short)
    assert "`read_16`" not in short
    assert "Noisy, to be measured again before they are believed: `write_16`." in short
    assert re.search(r"Not measured: .*`ids`", short)
    section = text[text.index("## routing") :]
    assert re.search(r"`read_16` \| ratio \| 0\.5 \| .* \| 7 \| ≤ 0\.85 \| met \|", section)
    assert re.search(r"`write_16` .* \*\*missed\*\* noisy \|", section)
    assert "- `citus`: not installed" in section
    assert re.search(r"2 cores|\d+ cores, load when it began", section)


def test_few_rounds_and_changed_files_are_confessed() -> None:
    found = made(quick=True).report()
    dirty = report.msgspec.structs.replace(found, commit="abc-dirty")
    text = page.text([dirty, report.msgspec.structs.replace(found, benchmark="ids", commit="def")])
    assert "From few rounds (`--quick`): `routing`, `ids`." in text
    assert "changed after their commit: `routing`." in text
    assert "not all of one commit: abc-dirty, def." in text
    assert "`python -m benchmarks ids --quick`" in text


def test_reports_are_taken_over_without_their_single_operations(place: Path) -> None:
    whole = made().report()
    report.write(whole, place / "reports" / "a.json")
    report.write(report.msgspec.structs.replace(whole, when="2020-01-01T00:00:00Z", commit="old"), place / "reports" / "z.json")
    written = page.write(place / "reports")
    kept = report.read(place / "results" / "routing.json")
    assert kept.commit == whole.commit, "the newest counts"
    assert set(kept.samples) == set(kept.results)
    assert kept.results == whole.results
    assert {file.name for file in written} == {"routing.json", "routing.svg", "page.md"}
    assert (place / "page.md").read_text("utf-8") == page.text([kept])


def test_what_is_no_report_or_too_large_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(report.ReportError, match="no report in"):
        page.write(place / "reports")
    report.write(made().report(), place / "reports" / "a.json")
    monkeypatch.setattr(page, "LARGEST", 100)
    with pytest.raises(report.ReportError, match="more than the 100"):
        page.write(place / "reports")
    (place / "reports" / "a.json").write_text("{}")
    with pytest.raises(report.ReportError, match="no benchmark report"):
        page.write(place / "reports")


def test_command_line(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "ROOT", place)
    report.write(made().report(), place / "reports" / "a.json")
    capsys.readouterr()
    assert command.main(["page", "--from", str(place / "reports")]) == 0
    assert capsys.readouterr().out.split() == ["results/routing.json", "plots/routing.svg", "page.md"]
    assert command.main(["page", "--from", str(place / "absent")]) == 2
    assert command.main(["routing", "--from", str(place)]) == 2
    assert "only page takes --from" in capsys.readouterr().err


def test_figures_that_differ_in_a_number_are_one_line() -> None:
    bench = made("shards")
    for shards, servers in ((1, 1), (64, 1), (64, 4)):
        bench.record(f"ops_{shards}_on_{servers}", [1.0, 2.0, 3.0], unit="ops/s", better="higher")
    (panel,) = lines.panels(bench.report())
    assert panel.lines == {"servers: 1": {1: (1.5, 2, 2.5), 64: (1.5, 2, 2.5)}, "servers: 4": {64: (1.5, 2, 2.5)}}
    assert lines.panels(made().report()) == []


def test_a_picture_of_lines_has_them_all(place: Path) -> None:
    bench = made("year")
    for servers in (10, 100):
        bench.record(f"moved_share_{servers}", [0.5], unit="share")
    report.write(bench.report(), place / "reports" / "year.json")
    page.write(place / "reports")
    assert "bytes moved in a year" in (place / "plots" / "year.svg").read_text("utf-8")
