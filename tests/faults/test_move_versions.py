"""Moves on older PostgreSQL, which lacks some of what newer ones bring: whatever release is found here is tried.

The rest of the tests runs on the newest one found; ``SHARDKIT_PG_DIRS`` names more directories with ``postgres`` in them.
"""

from __future__ import annotations

import os
from pathlib import Path

import psycopg
import pytest

from shardkit.core import moving as m
from shardkit.core.easing import Limits
from shardkit.errors import MoveRefusedError
from shardkit.local import run_local
from shardkit.local.binaries import _postgres_directories, _usable
from shardkit.move import run
from tests.faults.illtreat import forged_row_is_found
from tests.faults.lab import Load
from tests.faults.movelab import Lab

OLDER = (15, 16, 17)


def directories():
    """Where each release of PostgreSQL is, by its major version."""
    named = [Path(name) for name in os.environ.get("SHARDKIT_PG_DIRS", "").split(os.pathsep) if name]
    found = [one for directory in (*named, *_postgres_directories()) if (one := _usable(directory))]
    return {one.major: one.directory for one in reversed(found)}


@pytest.fixture(scope="module", params=OLDER)
def lab(request):
    here = directories()
    if request.param not in here:
        pytest.skip(f"no PostgreSQL {request.param} here (found: {', '.join(map(str, sorted(here)))})")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHARDKIT_PG_BIN", str(here[request.param]))
        with run_local(servers=2, redis=False, trust=True, fast=True) as cluster, Lab.on_cluster(cluster) as lab:
            with lab.on("pg1") as connection:
                assert connection.info.server_version // 10_000 == request.param
            yield lab


def test_a_move_under_load_a_rollback_and_a_move_that_is_finished(lab):
    with Load(lab) as load:
        load.wait_for(10)
        move = lab.go_on(lab.begin())
        assert move.step is m.Step.SOAK
        load.wait_for(10)
        assert lab.go_on(lab.begin_rollback(move)).step is m.Step.FINISHED
        load.wait_for(10)
        assert lab.go_on(lab.go_on(lab.begin()), "finish").step is m.Step.FINISHED
        load.wait_for(10)
    assert lab.complaints(load) == []


def test_a_move_that_finds_a_forged_row_and_is_aborted(lab):
    forged_row_is_found(lab)
    assert lab.complaints() == []


def test_a_login_that_may_not_subscribe_is_told_what_it_needs(lab):
    with lab.on(lab.place.server) as source, lab.on(lab.other) as target:
        version = source.info.server_version
        for connection in (source, target):
            connection.execute("CREATE ROLE carrier LOGIN REPLICATION IN ROLE shardkit, pg_read_all_data")
            connection.execute(f'GRANT CREATE ON DATABASE "{connection.info.dbname}" TO carrier')
        try:
            urls = {name: psycopg.conninfo.make_conninfo(url, user="carrier") for name, url in lab.servers.items()}
            settings = run.Settings(catalog_url=lab.settings.catalog_url, servers=urls)
            move = lab.begin()
            said = "15 needs a superuser" if version < 160_000 else "GRANT pg_create_subscription"
            with pytest.raises(MoveRefusedError, match=said):
                run.go_on(settings, move.id)
            with pytest.raises(MoveRefusedError, match="may not see how busy it is: GRANT pg_read_all_stats"):
                run.go_on(settings, move.id, options=run.MoveOptions(limits=Limits(active=5)))
            assert lab.go_on(move, "abort").step is m.Step.ABORTED
        finally:
            for connection in (source, target):
                connection.execute(f'REVOKE ALL ON DATABASE "{connection.info.dbname}" FROM carrier; DROP ROLE carrier')
