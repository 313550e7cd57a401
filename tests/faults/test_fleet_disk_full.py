"""The disk of a server fills up while shards are migrated: named, nothing half, and gone on with when there is room."""

from __future__ import annotations

import os
import subprocess

import psycopg
import pytest
from psycopg import sql

from shardkit.core.fleet import Why
from shardkit.local.databases import fresh_databases
from tests.integration.fleetlab import FleetLab

SHARDS = 8
STATE = """SELECT (SELECT string_agg(version_num, ',') FROM alembic_version) || ' '
|| (to_regclass('big') IS NOT NULL)::text || ' ' || (SELECT count(*)::text FROM pg_attribute WHERE attrelid = 'orders'::regclass
AND attname = 'extra')"""


def mount(place, *options):
    made = subprocess.run(["mount", *options, "tmpfs", str(place)], check=False, capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"cannot mount here: {made.stderr.strip()}")


@pytest.fixture
def small(local_cluster, tmp_path):
    """A table space with room for a few shards, and a way to make it larger."""
    place, server = tmp_path / "small", local_cluster.servers[0]
    place.mkdir()
    mount(place, "-t", "tmpfs", "-o", "size=3m")
    owner = (local_cluster.data_dir / "servers" / server.name).stat()
    os.chown(place, owner.st_uid, owner.st_gid)
    for parent in (place, *place.parents[:3]):
        parent.chmod(parent.stat().st_mode | 0o055)
    name = sql.Identifier("shardkit_small")
    with psycopg.connect(server.url_of("postgres"), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE TABLESPACE {} LOCATION {}").format(name, sql.Literal(str(place))))
        try:
            yield lambda: mount(place, "-o", "remount,size=64m")
        finally:
            connection.execute(sql.SQL("DROP TABLESPACE {}").format(name))
            connection.execute("CHECKPOINT")  # files of dropped tables go with it
            subprocess.run(["umount", str(place)], check=True)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount")
def test_disk_full_in_the_middle_and_gone_on_with(small, local_cluster, tmp_path):
    with fresh_databases(local_cluster.servers, 1) as databases:
        lab = FleetLab(databases, tmp_path / "tree", shards=SHARDS)
        lab.orders()
        lab.migrate()
        lab.revise(
            "b",
            "op.add_column('orders', sa.Column('extra', sa.Text))\n"
            "op.execute('CREATE TABLE big TABLESPACE shardkit_small AS ' "
            "\"SELECT repeat('x', 1000) AS x FROM generate_series(1, 800)\")",
        )
        report = lab.migrate(parallel=2)
        full = {one.shard for one in report.behind}
        assert {one.why for one in report.behind} == {Why.FAILED}
        assert all("No space left on device" in one.detail for one in report.behind)
        assert 0 < len(report.done) < SHARDS
        assert full | set(report.done) == set(range(SHARDS))
        assert lab.everywhere(STATE) == {"a false 0", "b true 1"}, "a shard is half done"
        assert {shard for (shard, revision), state in lab.ledger().items() if (revision, state) == ("b", "failed")} == full
        assert all("No space left" in one.detail for one in lab.fleet.status().behind)
        small()
        assert set(lab.migrate().done) == full
        assert lab.everywhere(STATE) == {"b true 1"}
        assert set(lab.ledger().values()) == {"done"}
