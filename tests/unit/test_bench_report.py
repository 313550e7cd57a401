"""One form for every benchmark: what the harness writes passes the checker, and planted faults do not."""

from __future__ import annotations

import asyncio
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress

from benchmarks import plots, report, tables
from benchmarks.harness import Bench


def make_bench(**given: Any) -> Bench:
    return Bench(name="planted", question="Is it?", progress=Progress(disable=True), **given)


@pytest.fixture
def bench() -> Bench:
    bench = make_bench()
    draw = random.Random(5)
    other = [[draw.uniform(0.9, 1.1) for _ in range(9)] for _ in range(7)]
    ours = [[0.5 * value for value in block] for block in other]
    bench.ratio("fast", ours=ours, other=other, goal=0.6)
    bench.ratio("faster", ours=ours, other=other, goal=3, better="higher")
    bench.record("stall_ms", [3.0, 4.0, 60.0], unit="ms", goal=15, goal_max=50)
    bench.count("lost", [0, 0, 0])
    bench.record("size", [17.0], unit="bytes")
    bench.skip("citus", "not installed")
    return bench


@pytest.fixture
def document(bench: Bench, tmp_path: Path) -> dict[str, Any]:
    report.write(bench.report(), tmp_path / "a.json")
    loaded: dict[str, Any] = json.loads((tmp_path / "a.json").read_text())
    return loaded


def test_figures_and_goals(bench: Bench) -> None:
    found = bench.results
    assert found["fast"].median == pytest.approx(0.5)
    assert found["faster"].median == pytest.approx(2)
    assert {key: result.met for key, result in found.items()} == {
        "fast": True, "faster": False, "stall_ms": False, "lost": True, "size": None,
    }  # fmt: skip


def test_one_bad_round_among_many_breaks_a_count() -> None:
    bench = make_bench()
    assert bench.count("lost", [0, 0, 0, 0, 1]).median == 0
    assert bench.results["lost"].met is False


def test_a_figure_is_measured_once(bench: Bench) -> None:
    with pytest.raises(ValueError, match="recorded before"):
        bench.record("size", [18.0], unit="bytes")


def test_a_figure_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        make_bench().record("odd", [float("nan")], unit="s")


def test_file_has_the_keys_of_the_form(document: dict[str, Any]) -> None:
    assert set(document) == {
        "benchmark", "schema", "commit", "when", "machine", "versions", "question", "params", "rounds", "results",
        "skipped", "samples",
    }  # fmt: skip
    assert set(document["machine"]) == {"cores", "load", "load_end"}
    assert set(document["results"]["fast"]) == {
        "median", "p25", "p75", "max", "ci", "unit", "better", "goal", "n", "met",
    }  # fmt: skip
    assert document["versions"]["python"].startswith("3.")
    assert document["rounds"] == 7
    assert [len(block) for block in document["samples"]["fast.ours"]] == [9] * 7


def remove(*path: str) -> Callable[[dict[str, Any]], None]:
    def fault(document: dict[str, Any]) -> None:
        for step in path[:-1]:
            document = document[step]
        del document[path[-1]]

    return fault


def put(value: Any, *path: str) -> Callable[[dict[str, Any]], None]:
    def fault(document: dict[str, Any]) -> None:
        for step in path[:-1]:
            document = document[step]
        document[path[-1]] = value

    return fault


@pytest.mark.parametrize(
    "fault",
    [
        remove("commit"),
        remove("machine", "cores"),
        remove("results", "fast", "p75"),
        put(2, "schema"),
        put("today", "when"),
        put("Bad Key", "benchmark"),
        put({"a key": 1}, "results"),
        put("0.5", "results", "fast", "median"),
        put(0.9, "results", "fast", "p25"),
        put([0.6, 0.4], "results", "fast", "ci"),
        put([0.5], "results", "fast", "ci"),
        put("faster", "results", "fast", "better"),
        put(8, "results", "fast", "n"),
        put(False, "results", "fast", "met"),
        put(True, "results", "stall_ms", "met"),
        put([1, 2, 3], "samples", "fast"),
        put(1, "extra"),
        put(1, "results", "fast", "mean"),
    ],
)
def test_planted_fault_is_refused(document: dict[str, Any], tmp_path: Path, fault: Any) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(json.dumps(document))
    assert report.read(good).benchmark == "planted"
    fault(document)
    bad.write_text(json.dumps(document))
    with pytest.raises(report.ReportError, match=r"bad\.json is no benchmark report"):
        report.read(bad)


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "cut.json").write_text('{"benchmark": "routing", ')
    for name in ("absent.json", "cut.json"):
        with pytest.raises(report.ReportError, match=name):
            report.read(tmp_path / name)


def test_the_written_schema_is_the_checked_one() -> None:
    assert report.SCHEMA_FILE.read_text("utf-8") == report.schema_json(), (
        "write it anew: python -c 'from benchmarks import report as r; r.SCHEMA_FILE.write_text(r.schema_json())'"
    )


def test_blocks_are_interleaved_and_shuffled() -> None:
    bench, calls = make_bench(), []
    variants = {name: lambda name=name: calls.append(name) for name in "abc"}
    taken = bench.interleave(variants, rounds=12, block=4, warmup=1)
    assert {name: [len(block) for block in rounds] for name, rounds in taken.items()} == dict.fromkeys("abc", [4] * 12)
    assert calls[:3] == list("abc")
    orders = []
    for start in range(3, len(calls), 12):
        blocks = ["".join(calls[start + place : start + place + 4]) for place in (0, 4, 8)]
        assert sorted(blocks) == ["aaaa", "bbbb", "cccc"]
        orders.append("".join(block[0] for block in blocks))
    assert len(set(orders)) > 2


def test_progress_goes_from_nothing_to_all() -> None:
    bench, seen = make_bench(), []
    bench.interleave({"a": lambda: seen.append(bench.progress.tasks[0].completed), "b": lambda: None}, rounds=3, warmup=0)
    (task,) = bench.progress.tasks
    assert (task.completed, task.total) == (6, 6)
    assert seen == sorted(seen)
    assert seen[0] < 2


def test_async_operations_are_awaited_one_by_one() -> None:
    bench, running, most = make_bench(), 0, 0

    async def operation() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    taken = asyncio.run(bench.interleave_async({"a": operation, "b": operation}, rounds=3, block=5))
    assert (most, running) == (1, 0)
    assert [len(block) for block in taken["b"]] == [5, 5, 5]


def test_table_says_what_was_met_missed_noisy_and_skipped(bench: Bench) -> None:
    console = Console(file=io.StringIO(), width=150, record=True)
    console.print(tables.results(bench.report()))
    lines = {line.split()[1]: line for line in console.export_text().splitlines() if "│" in line}
    assert "met" in lines["fast"]
    assert "MISSED" in lines["stall_ms"]
    assert "noisy" in lines["stall_ms"]
    assert "noisy" not in lines["fast"]
    assert "skipped: not installed" in lines["citus"]


def test_plots_are_drawn_with_a_see_through_background(bench: Bench, tmp_path: Path) -> None:
    svg, png = plots.plot(bench.report(), tmp_path / "plots")
    assert "stall_ms" in svg.read_text("utf-8")
    assert png.read_bytes().startswith(b"\x89PNG")
    from matplotlib import image

    corner = image.imread(png)[0, 0]
    assert corner[3] == 0
