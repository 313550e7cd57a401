"""Moves on older PostgreSQL, which lacks some of what newer ones bring: whatever release is found here is tried.

The rest of the tests runs on the newest one found. ``pip install "shardkit[releases]"`` brings 16 and 17, and
``SHARDKIT_PG_DIRS`` names more directories with ``postgres`` in them.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import psycopg
import pytest
from every_kind import OF_EVERY_RELEASE

from shardkit.catalog.membership import join, plan_joining
from shardkit.core import moving as m
from shardkit.core.easing import Limits
from shardkit.errors import MoveRefusedError
from shardkit.local import run_local
from shardkit.local.binaries import _postgres_directories, _usable
from shardkit.local.databases import fresh_databases
from shardkit.move import run
from tests.faults import isolatelab
from tests.faults.illtreat import Killed, forged_row_is_found, just_before
from tests.faults.lab import Load
from tests.faults.movelab import Lab

OLDER = (15, 16, 17)


def directories():
    """Where each release of PostgreSQL is, by its major version."""
    named = [Path(name) for name in os.environ.get("SHARDKIT_PG_DIRS", "").split(os.pathsep) if name]
    found = [one for directory in (*named, *_postgres_directories()) if (one := _usable(directory))]
    return {one.major: one.directory for one in reversed(found)}


@contextlib.contextmanager
def older_cluster(major, *, servers):
    here = directories()
    if major not in here:
        pytest.skip(f"no PostgreSQL {major} here (found: {', '.join(map(str, sorted(here)))})")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHARDKIT_PG_BIN", str(here[major]))
        cluster = run_local(servers=servers, redis=False, trust=True, fast=True)
    with cluster:
        yield cluster


def release_of(lab, server):
    with lab.on(server) as connection:
        return connection.info.server_version // 10_000


@pytest.fixture(scope="module", params=OLDER)
def lab(request):
    with older_cluster(request.param, servers=2) as cluster, Lab.on_cluster(cluster) as lab:
        assert release_of(lab, "pg1") == request.param
        yield lab


class RichLab(Lab):
    BLUEPRINT = f"{Lab.BLUEPRINT};{OF_EVERY_RELEASE}"


@contextlib.contextmanager
def on_two_releases(kind, older_major, newest):
    """A lab on a server of an older release, and a server of the newest one that was added later."""
    with older_cluster(older_major, servers=1) as older, fresh_databases(older.servers, 1) as databases:
        name = f"newer_than_{older_major}"
        collation = "" if older_major >= 17 else "TEMPLATE template0 LOCALE_PROVIDER libc LOCALE 'C'"
        with psycopg.connect(newest.url_of("postgres"), autocommit=True) as admin, contextlib.ExitStack() as undo:
            admin.execute(f"CREATE DATABASE {name} {collation}")
            undo.callback(admin.execute, f"DROP DATABASE {name} WITH (FORCE)")
            lab = undo.enter_context(contextlib.closing(kind(databases)))
            join(lab.settings, plan_joining(lab.settings, "newest", newest.url_of(name)))
            lab.servers["newest"] = newest.url_of(name)
            yield lab


@pytest.fixture(params=OLDER)
def mixed(request, local_cluster):
    with on_two_releases(RichLab, request.param, local_cluster.servers[0]) as lab:
        yield lab


@pytest.fixture(params=[15, 16])
def mixed_isolate(request, local_cluster):
    with on_two_releases(isolatelab.Lab, request.param, local_cluster.servers[0]) as lab:
        yield lab


@pytest.mark.parametrize("mixed", [17], indirect=True)
@pytest.mark.parametrize("kind", [m.Complete, m.Arm], ids=["before its indexes", "after them"])
def test_a_killed_move_to_a_newer_release_goes_on_with_what_is_missing(mixed, kind):
    def kill():
        raise Killed

    move = mixed.begin(soak=False)
    with pytest.raises(Killed):
        mixed.go_on(move, around=just_before(kind, kill))
    assert mixed.go_on(move).step is m.Step.FINISHED
    assert mixed.place.server == "newest"
    assert mixed.complaints() == []


def there_and_back(lab, load):
    load.wait_for(10)
    move = lab.go_on(lab.begin())
    assert move.step is m.Step.SOAK
    load.wait_for(10)
    assert lab.go_back(move).step is m.Step.FINISHED
    load.wait_for(10)


def there_and_back_and_there(lab):
    with Load(lab) as load:
        there_and_back(lab, load)
        assert lab.go_on(lab.go_on(lab.begin()), "finish").step is m.Step.FINISHED
        load.wait_for(10)
    assert lab.complaints(load) == []


def test_a_move_under_load_a_rollback_and_a_move_that_is_finished(lab):
    there_and_back_and_there(lab)


def test_a_move_to_a_newer_release_and_never_to_an_older_one(mixed):
    assert release_of(mixed, "pg1") < release_of(mixed, "newest")
    there_and_back_and_there(mixed)
    assert mixed.place.server == "newest"
    move = mixed.begin(soak=False)
    with pytest.raises(MoveRefusedError, match="PostgreSQL is older than the source's"):
        mixed.go_on(move)


def test_a_tenant_to_a_newer_release_and_back(mixed_isolate):
    with Load(mixed_isolate) as load:
        there_and_back(mixed_isolate, load)
    assert mixed_isolate.complaints(load) == []


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
