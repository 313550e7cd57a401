"""SQLAlchemy's own tests through our session: ``python -m tests.acceptance.sqlalchemy_suite``.

The source distribution of the installed SQLAlchemy is fetched by pip. Its tests run three times: as they are (``plain``), with
every Session on a connection that leads nowhere (``control``), and with every Session routed (``routed``). What passes plain
must pass routed; what passes under control too would pass without any routing, and shows only that nothing was broken.

With SQLAlchemy 2.1.9: ``orm`` plain 3,703, control 893, routed 3,692; ``asyncio`` plain 142, control 58, routed 141. The twelve
that are left are named in BY_DESIGN, each with its reason.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import sqlalchemy
from psycopg import sql

from shardkit import run_local
from shardkit.local.databases import fresh_databases

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SCHEMAS = ("s0000_e1", "nothing_here", "test_schema", "test_schema_2")
SUITES = {
    "orm": (
        "",
        [
            "orm/test_session.py",
            "orm/test_transaction.py",
            "orm/test_unitofwork.py",
            "orm/test_unitofworkv2.py",
            "orm/dml",
            "orm/test_versioning.py",
            "orm/test_load_on_fks.py",
            "orm/test_query.py",
            "orm/test_eager_relations.py",
            "orm/test_assorted_eager.py",
            "orm/test_selectin_relations.py",
            "orm/test_subquery_relations.py",
            "orm/test_immediate_load.py",
            "orm/test_lazy_relations.py",
            "orm/test_cascade.py",
            "orm/test_merge.py",
            "orm/test_expire.py",
        ],
    ),
    "asyncio": ("_async", ["ext/asyncio/test_session.py"]),
}
BY_DESIGN = {
    "AsyncProxyTest::test_get_connection_kws": "AUTOCOMMIT is refused on a routed session",
    "MergeTest::test_option_state": "its option has no cache key, so SQLAlchemy takes our filter for it, twice",
    "SessionInterface::": "asks which methods stand in the class's own __dict__; ours inherits most of them",
    "TransactionConnectionsTest::test_multiple_binds": "a session with two engines; a routed one has its shard's server only",
    "TransactionConnectionsTest::test_savepoint_multiple_binds": "the same",
    "SessionTransactionTest::test_twophase": "two-phase commit is refused on a routed session",
    "TwoPhaseTest::": "the same",
}
"""Tests that cannot pass through a session that is routed, by class and name."""
BACKEND = re.compile(r"_postgresql\+\w+?_\d+_\d+$")  # what SQLAlchemy appends to a class that is run per backend
MODES = {"plain": "psycopg", "control": "shardkit", "routed": "shardkit"}


@dataclass
class Counts:
    """The outcome of each test by its name: passed, failed or skipped."""

    outcomes: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def __str__(self):
        return ", ".join(f"{list(self.outcomes.values()).count(kind)} {kind}" for kind in ("passed", "failed", "skipped"))

    def named(self, kind):
        return {name for name, outcome in self.outcomes.items() if outcome == kind}


def fetch(into: Path) -> Path:
    """The unpacked source distribution of the SQLAlchemy that is installed."""
    wanted = into / f"sqlalchemy-{sqlalchemy.__version__}"
    if not wanted.exists():
        # Only its metadata is built, in an environment of pip's own.
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", "sqlalchemy", "-d", str(into)]
        subprocess.run([*pip, f"sqlalchemy=={sqlalchemy.__version__}"], check=True)
        with tarfile.open(next(into.glob("*.tar.gz"))) as archive:
            archive.extractall(into, filter="data")
    return wanted


def run(sources: Path, suite: str, mode: str, database: str, *, select: str = "") -> Counts:
    """Run one of SUITES in one of MODES against the empty *database*."""
    suffix, files = SUITES[suite]
    with psycopg.connect(database, autocommit=True) as connection:
        for name in SCHEMAS:
            connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(name)))
    url = sqlalchemy.make_url(database).set(drivername=f"postgresql+{MODES[mode]}{suffix}")
    url = url.update_query_dict({"options": f"-csearch_path={SCHEMAS[0]}"})
    with tempfile.NamedTemporaryFile(suffix=".xml") as report:
        # -s: SQLAlchemy's conftest then tests what is installed, not its own unbuilt sources
        argv = [sys.executable, "-s", "-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:timeout", "-p", "no:cacheprovider"]
        traces = "short" if mode == "routed" else "no"  # thousands fail under control, and each trace costs its time
        argv += ["--maxfail=100000", f"--tb={traces}", f"--junit-xml={report.name}"]
        argv += ["--dburi", url.render_as_string(False)]
        if mode != "plain":
            argv += ["-p", "tests.acceptance.suite_plugin"]
        argv += [f"test/{file}" for file in files] + (["-k", select] if select else [])
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "SHARDKIT_SUITE": mode, "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(argv, check=False, cwd=sources, env=environment, capture_output=True, text=True)
        try:
            return read(Path(report.name))
        except ET.ParseError:
            raise RuntimeError(
                f"{suite}, {mode}: pytest gave no report\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
            ) from None


def read(report: Path) -> Counts:
    """What a JUnit report says. A test whose teardown failed after it has failed, once."""
    counts = Counts()
    for case in ET.parse(report).iter("testcase"):
        name = f"{BACKEND.sub('', case.get('classname', ''))}::{case.get('name')}"
        trouble = next((part for part in case if part.tag in ("failure", "error")), None)
        skipped = case.find("skipped") is not None
        outcome = "failed" if trouble is not None else "skipped" if skipped else "passed"
        if counts.outcomes.get(name) != "failed":
            counts.outcomes[name] = outcome
        if trouble is not None:
            counts.reasons[name] = f"{trouble.get('message')}\n{trouble.text}"
    return counts


def main(arguments: list[str] | None = None) -> dict[str, dict[str, Counts]]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suites", nargs="*", default=[], help=f"of {', '.join(SUITES)}; all of them")
    parser.add_argument("-k", dest="select", default="", help="only tests that match, as pytest's -k")
    parser.add_argument("--sources", type=Path, help="where the source distribution is kept between runs")
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("-v", dest="verbose", action="store_true", help="print the reasons of what fails routed")
    given = parser.parse_args(arguments)
    modes, suites = given.modes.split(","), given.suites or list(SUITES)
    found: dict[str, dict[str, Counts]] = {}
    with tempfile.TemporaryDirectory() as scratch, run_local(servers=1, redis=False, trust=True, fast=True) as cluster:
        sources = fetch(given.sources or Path(scratch))
        for suite in suites:
            with fresh_databases(cluster.servers, len(modes)) as databases, ThreadPoolExecutor(2) as pool:
                running = {
                    mode: pool.submit(run, sources, suite, mode, database, select=given.select)
                    for mode, database in zip(modes, databases.servers.values(), strict=True)
                }
                found[suite] = {mode: future.result() for mode, future in running.items()}
            for mode, counts in found[suite].items():
                print(f"{suite:8} {mode:8} {counts}")
            if {"plain", "routed"} <= found[suite].keys():
                for name in sorted(found[suite]["plain"].named("passed") - found[suite]["routed"].named("passed")):
                    print(f"  passes plain, fails routed: {name}: {reason(name) or 'UNEXPECTED'}")
                    if given.verbose and reason(name) is None:
                        print(found[suite]["routed"].reasons[name])
    return found


def reason(name: str) -> str | None:
    """Why the test *name* cannot pass when routed; None if it should."""
    return next((why for known, why in BY_DESIGN.items() if known in name), None)


def broken(found: dict[str, Counts]) -> set[str]:
    """Tests that pass on SQLAlchemy as it is and should pass when routed, but do not."""
    return {name for name in found["plain"].named("passed") - found["routed"].named("passed") if reason(name) is None}


if __name__ == "__main__":
    sys.exit(any(broken(modes) for modes in main().values() if {"plain", "routed"} <= modes.keys()))
