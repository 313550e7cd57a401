"""Shards made by an older release lack tables of shardkit's own: named by status, made by the next migration."""

from __future__ import annotations

import psycopg
import pytest

from shardkit.core.fleet import Why
from shardkit.db.shard_objects import own_tables
from shardkit.schema.drift import check_fleet
from tests.integration.fleetlab import FleetLab

RIGHTS = """
SELECT string_agg(c.relname || ':' || coalesce(c.relacl::text, '') || ':' || c.relrowsecurity, ',' ORDER BY c.relname)
FROM pg_class c WHERE relnamespace = current_schema()::regnamespace AND relname = ANY('{%s}')"""


@pytest.fixture
def lab(shardkit_databases, tmp_path):
    return FleetLab.with_orders(shardkit_databases(2), tmp_path / "tree", shards=8)


def lose(lab, shard, *tables):
    with lab.shard(shard) as connection:
        for table in tables:
            connection.execute(psycopg.sql.SQL("DROP TABLE {}").format(psycopg.sql.Identifier(table)))


def incomplete(report):
    return {one.shard: one.detail for one in report.behind if one.why is Why.INCOMPLETE}


def test_missing_tables_of_ours_are_named_and_made(lab):
    lose(lab, 3, "shardkit_outbox", "shardkit_keys")
    lose(lab, 6, *own_tables())
    assert incomplete(lab.fleet.status()) == {3: "shardkit_keys, shardkit_outbox", 6: ", ".join(own_tables())}
    assert incomplete(lab.migrate(dry_run=True)).keys() == {3, 6}
    said = lab.run("status")
    assert (said.returncode, "lacks tables" in said.stdout) == (3, True)
    drifts, _ = check_fleet(lab.settings, lab.tree)
    assert [one.shard for one in drifts] == [3, 6]
    report = lab.migrate()
    assert (report.complete, report.mended, report.done) == (True, (3, 6), ())
    assert lab.fleet.status().complete
    assert check_fleet(lab.settings, lab.tree)[0] == []
    assert len(lab.everywhere(RIGHTS % ",".join(own_tables()))) == 1, "other rights than those of a new shard"
    assert lab.migrate().mended == ()


def test_shard_that_is_moved_is_left_as_it_is_and_named(lab):
    lose(lab, 3, "shardkit_outbox")
    with lab.catalog() as catalog:
        catalog.execute(
            "INSERT INTO shardkit_catalog.moves (shard, source, target, epoch, step) VALUES (3, 'pg1', 'pg2', 1, 'copy')"
        )
        report = lab.migrate()
        assert (report.complete, report.mended) == (False, ())
        assert "step copy" in incomplete(report)[3]
        catalog.execute("UPDATE shardkit_catalog.moves SET ended = true")
    assert lab.migrate().mended == (3,)
