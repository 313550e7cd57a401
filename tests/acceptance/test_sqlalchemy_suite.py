"""SQLAlchemy's own tests, with every Session routed. Long: ``pytest -m slow tests/acceptance/test_sqlalchemy_suite.py``."""

from __future__ import annotations

import pytest

from tests.acceptance.sqlalchemy_suite import Counts, broken, main, read

REPORT = """<testsuites><testsuite>
<testcase classname="test.orm.A_postgresql+psycopg_18_6" name="good"/>
<testcase classname="test.orm.A_postgresql+psycopg_18_6" name="bad"><failure message="no">trace</failure></testcase>
<testcase classname="test.orm.A_postgresql+psycopg_18_6" name="dirty"/>
<testcase classname="test.orm.A_postgresql+psycopg_18_6" name="dirty"><error message="teardown">trace</error></testcase>
<testcase classname="test.orm.A_postgresql+psycopg_18_6" name="out"><skipped message="why"/></testcase>
</testsuite></testsuites>"""


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("suite", ["asyncio", "orm"])
def test_what_passes_without_us_passes_routed_and_mostly_not_unrouted(suite):
    found = main([suite])[suite]
    assert broken(found) == set()
    assert len(found["plain"].named("passed")) > 100
    assert len(found["control"].named("passed")) < len(found["plain"].named("passed")) / 2


def test_a_test_that_fails_only_when_routed_is_seen(tmp_path):
    report = tmp_path / "report.xml"
    report.write_text(REPORT)
    routed = read(report)
    assert routed.outcomes == {
        "test.orm.A::good": "passed",
        "test.orm.A::bad": "failed",
        "test.orm.A::dirty": "failed",
        "test.orm.A::out": "skipped",
    }
    plain = Counts(dict.fromkeys(routed.outcomes, "passed"))
    assert broken({"plain": plain, "routed": routed}) == {"test.orm.A::bad", "test.orm.A::dirty", "test.orm.A::out"}


def test_what_cannot_pass_is_named_and_nothing_else_is_excused():
    names = ["test.orm.test_transaction.TwoPhaseTest::any", "test.orm.test_transaction.Other::any"]
    plain, routed = (Counts(dict.fromkeys(names, outcome)) for outcome in ("passed", "failed"))
    assert broken({"plain": plain, "routed": routed}) == {names[1]}
