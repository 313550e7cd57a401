"""The comparison finds a planted regression, keeps quiet about noise, and its exit code says which it was."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from rich.progress import Progress

from benchmarks import __main__ as command
from benchmarks import report
from benchmarks.compare import NotComparableError, compare, warnings
from benchmarks.harness import Bench


def make(seed: int, *, factor: float = 1.0, name: str = "planted", lost: int = 0, drop: str = "") -> report.Report:
    """Five ratios around 0.8 with 8 % noise, and a count; the ratios *factor* times what they should be."""
    bench = Bench(name=name, question="Is it?", progress=Progress(disable=True))
    draw = random.Random(seed)
    for key in ("one", "two", "three", "four", "five"):
        if key != drop:
            noise = [0.8 * factor * draw.lognormvariate(0, 0.08) for _ in range(11)]
            bench.record(key, noise, unit="ratio", goal=0.95)
    bench.count("lost", [0, 0, lost])
    return bench.report()


def verdicts(before: report.Report, after: report.Report) -> dict[str, str]:
    return {change.key: change.verdict for change in compare(before, after)}


def test_planted_regression_is_found_in_every_figure() -> None:
    found = verdicts(make(1), make(2, factor=1.5))
    assert {key for key, verdict in found.items() if verdict == "worse"} == {"one", "two", "three", "four", "five"}
    assert found["lost"] == "same"


def test_improvement_is_no_regression() -> None:
    found = compare(make(1, factor=1.5), make(2))
    assert {change.verdict for change in found if change.key != "lost"} == {"better"}
    assert not any(change.bad for change in found)


def test_noise_alone_is_reported_in_less_than_one_of_fifty_figures() -> None:
    alarms = sum(verdict != "same" for seed in range(40) for verdict in verdicts(make(seed), make(seed + 1000)).values())
    assert alarms <= 40 * 5 / 50


def test_higher_is_better_turns_the_verdict_round() -> None:
    def speed(median: float) -> report.Report:
        bench = Bench(name="planted", question="Is it?", progress=Progress(disable=True))
        bench.record("speed", [median * 0.99, median, median * 1.01], unit="faster", better="higher")
        return bench.report()

    assert verdicts(speed(10), speed(5)) == {"speed": "worse"}
    assert verdicts(speed(5), speed(10)) == {"speed": "better"}


def test_a_step_too_small_to_matter_is_no_change_however_sure() -> None:
    def exact(median: float) -> report.Report:
        bench = Bench(name="planted", question="Is it?", progress=Progress(disable=True))
        bench.record("size", [median] * 5, unit="bytes")
        return bench.report()

    assert verdicts(exact(100), exact(104)) == {"size": "same"}
    assert verdicts(exact(100), exact(106)) == {"size": "worse"}


def test_one_lost_row_in_one_round_is_worse_though_the_median_is_the_same() -> None:
    assert verdicts(make(1), make(1, lost=1))["lost"] == "worse"


def test_a_figure_that_went_missing_is_not_passed_over() -> None:
    found = {change.key: change for change in compare(make(1), make(1, drop="two"))}
    assert (found["two"].verdict, found["two"].bad) == ("missing", True)
    assert {change.verdict for change in compare(make(1, drop="two"), make(1)) if change.key == "two"} == {"new"}


def test_different_benchmarks_do_not_compare() -> None:
    with pytest.raises(NotComparableError):
        compare(make(1), make(1, name="another"))


def test_other_parameters_are_a_warning() -> None:
    before, after = make(1), make(1)
    assert warnings(before, after) == []
    after.params["rows"] = 5
    assert warnings(before, after) == ["different parameters: rows"]


def run(*arguments: Any) -> int:
    return command.main([str(argument) for argument in arguments])


def test_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, slow, cut = tmp_path / "good.json", tmp_path / "slow.json", tmp_path / "cut.json"
    report.write(make(1), good)
    report.write(make(2, factor=1.5), slow)
    cut.write_text("{")
    assert run("compare", good, good) == 0
    assert "nothing is worse" in capsys.readouterr().out
    assert run("compare", good, slow) == 3
    assert "worse: one, two, three, four, five" in capsys.readouterr().out
    assert run("compare", good) == 2
    assert run("compare", good, cut) == 2
    assert "cut.json is no benchmark report" in capsys.readouterr().err
    assert run("nonsense") == 2
    assert "'nonsense' is not known" in capsys.readouterr().err
    assert run("local", "--json", tmp_path / "absent" / "x.json") == 2


def test_the_list_names_every_benchmark_with_its_question(capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks import find, present

    assert run() == 0
    listed = capsys.readouterr().out
    for name in present():
        assert f"{name:<12}{find(name).QUESTION}" in listed.replace("\n", " ") or find(name).QUESTION[:60] in listed
        assert find(name).QUESTION.endswith("?")
