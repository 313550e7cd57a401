"""The catalog is a hint that a program outlives, and whoever changes it is told when somebody else was faster."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from dataclasses import replace
from uuid import uuid4

import psycopg
import pytest
from fleet import Order
from psycopg.conninfo import make_conninfo
from sqlalchemy import exc, func, select, text

from shardkit import Settings, ShardKit
from shardkit.catalog import changes, journal
from shardkit.catalog.rows import load_map
from shardkit.catalog.watch import MapWatch
from shardkit.core.shardmap import Server
from shardkit.db import connect
from shardkit.errors import (
    CatalogError,
    CatalogUnavailableError,
    FanOutError,
    MapConflictError,
    NotInitializedError,
    Outcome,
    ServerDownError,
    StaleMapError,
    UnknownShardError,
    WrongServerError,
)

COUNT = select(func.count()).select_from(Order)


@contextlib.contextmanager
def open_kit(settings):
    kit = ShardKit(settings=settings)
    try:
        yield kit
    finally:
        kit.close()


@contextlib.contextmanager
def catalog_gone(fleet):
    """The catalog's database refuses everybody."""
    name = psycopg.conninfo.conninfo_to_dict(fleet.catalog_url)["dbname"]
    with psycopg.connect(fleet.catalog_url, dbname="postgres", autocommit=True) as admin:
        admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
        try:
            yield
        finally:
            admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")


@pytest.fixture
def nobody_home():
    with socket.socket() as held:  # it stays ours, and nobody listens
        held.bind(("127.0.0.1", 0))
        yield f"postgresql://shardkit@127.0.0.1:{held.getsockname()[1]}/nothing"


def test_a_dsn_that_leads_to_the_other_server_is_refused(fleet):
    swapped = {"pg1": fleet.servers["pg2"], "pg2": fleet.servers["pg1"]}
    with open_kit(fleet.settings(servers=swapped)) as kit, kit.session("acme") as s:
        with pytest.raises(WrongServerError, match="another server of this cluster") as caught:
            s.scalar(COUNT)
    assert (caught.value.outcome, caught.value.retryable) == (Outcome.NOT_DONE, False)


def test_a_dsn_that_leads_to_no_server_of_ours_is_refused(fleet):
    foreign = {name: make_conninfo(url, dbname="postgres") for name, url in fleet.servers.items()}
    with open_kit(fleet.settings(servers=foreign)) as kit, kit.session("acme") as s:
        with pytest.raises(WrongServerError, match="no shardkit identity"):
            s.scalar(COUNT)


def test_a_dsn_that_leads_to_another_cluster_is_refused(fleet):
    with fleet.admin("pg1") as admin:
        (mine,) = admin.execute("SELECT cluster_id FROM shardkit.identity").fetchone()
        admin.execute("UPDATE shardkit.identity SET cluster_id = %s", (uuid4(),))
        try:
            with open_kit(fleet.settings()) as kit:
                shard = kit.map.shards_on("pg1")[0]
                with kit.shard(shard).session() as s, pytest.raises(WrongServerError, match="another cluster"):
                    s.scalar(COUNT)
        finally:
            admin.execute("UPDATE shardkit.identity SET cluster_id = %s", (mine,))


def test_a_server_that_is_not_there_is_a_typed_error_and_the_other_one_serves(fleet, nobody_home):
    with open_kit(fleet.settings(servers={"pg1": nobody_home})) as kit:
        with kit.shard(kit.map.shards_on("pg1")[0]).session() as s, pytest.raises(ServerDownError, match="'pg1'") as caught:
            s.scalar(COUNT)
        assert (caught.value.outcome, caught.value.retryable) == (Outcome.NOT_DONE, True)
        with kit.shard(kit.map.shards_on("pg2")[0]).session() as s:
            assert s.scalar(COUNT) >= 0


def test_a_connection_that_breaks_while_it_is_looked_at_is_a_server_that_is_down(fleet, tenant, monkeypatch):
    def broken(*_):
        raise psycopg.OperationalError("server closed the connection unexpectedly")

    with open_kit(fleet.settings()) as kit:
        monkeypatch.setattr(connect, "check_identity", broken)
        with pytest.raises(FanOutError, match="does not answer: server closed"):
            kit.fan_out(select(Order.id))
        with pytest.raises(ServerDownError, match="does not answer: server closed"), kit.session(tenant) as s:
            s.scalar(COUNT)


def test_without_catalog_and_without_file_a_program_does_not_start(fleet, nobody_home, tmp_path):
    with pytest.raises(CatalogUnavailableError, match="map_file"):
        ShardKit(settings=Settings(catalog_url=nobody_home, map_file=tmp_path / "map.json"))


def test_with_a_saved_map_a_program_starts_without_catalog(fleet, nobody_home, tmp_path, tenant):
    file = tmp_path / "deep" / "map.json"
    with open_kit(fleet.settings(map_file=file)) as kit:
        before = kit.map
        with kit.begin(tenant) as s:
            s.add(Order(note="saved"))
    with open_kit(Settings(catalog_url=nobody_home, map_file=file, servers=fleet.servers)) as kit:
        assert kit.map == before
        with kit.session(tenant) as s:
            assert s.scalar(COUNT) == 1
        with pytest.raises(CatalogUnavailableError):
            kit.refresh()


def test_while_the_catalog_is_gone_tenants_are_served_and_the_programs_errors_stay_its_own(fleet, tenant, caplog):
    with open_kit(fleet.settings()) as kit, catalog_gone(fleet):
        with pytest.raises(CatalogUnavailableError, match="version"):
            kit.refresh()
        with kit.begin(tenant) as s:
            s.add(Order(note="meanwhile"))
        with kit.read(tenant) as s:
            assert s.scalar(COUNT) == 1
        with kit.session(tenant) as s, pytest.raises(exc.ProgrammingError, match="no_such_table"):
            s.execute(text("SELECT * FROM no_such_table"))


def test_a_refresh_survives_the_loss_of_an_idle_catalog_connection(fleet):
    with open_kit(fleet.settings()) as kit:
        kit.refresh()
        with catalog_gone(fleet):
            pass
        assert kit.refresh() is kit.map


@pytest.mark.parametrize(
    "broken", ["", "{", "[]", "null", '{"format": 1}', '{"format": 99}', "\x00\xff", '{"format": 1, "servers": 3}']
)
def test_a_saved_map_that_is_broken_is_a_warning(fleet, nobody_home, tmp_path, broken, caplog):
    file = tmp_path / "map.json"
    file.write_text(broken, "latin-1")
    with open_kit(fleet.settings(map_file=file)) as kit:
        assert kit.map.version >= 1
    file.write_text(broken, "latin-1")
    with caplog.at_level(logging.WARNING, "shardkit.catalog"), pytest.raises(CatalogUnavailableError):
        ShardKit(settings=Settings(catalog_url=nobody_home, map_file=file))
    assert "not usable" in caplog.text


def test_a_map_file_that_cannot_be_written_is_a_warning(fleet, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    with (
        caplog.at_level(logging.WARNING, "shardkit.catalog"),
        open_kit(fleet.settings(map_file=tmp_path / "file" / "map")) as kit,
    ):
        assert kit.map.version >= 1
    assert "could not be saved" in caplog.text


def test_a_catalog_restored_to_an_older_map_is_refused_and_routing_goes_on(fleet, tenant, tmp_path):
    file = tmp_path / "map.json"
    with fleet.admin() as catalog, open_kit(fleet.settings(map_file=file)) as kit:
        changes.pin(catalog, "pinned by the test", 3)
        newest = kit.refresh()
        catalog.execute("UPDATE shardkit_catalog.cluster SET map_version = map_version - 1")
        try:
            with pytest.raises(StaleMapError, match="backup"):
                kit.refresh()
            assert kit.map is newest
            assert kit.locate("pinned by the test").shard == 3
            with kit.session(tenant) as s:
                assert s.scalar(COUNT) == 0
            with pytest.raises(StaleMapError):
                ShardKit(settings=fleet.settings(map_file=file))
        finally:
            catalog.execute("UPDATE shardkit_catalog.cluster SET map_version = map_version + 1")


def test_the_map_of_another_cluster_is_refused(fleet):
    with fleet.admin() as catalog, pytest.raises(StaleMapError, match="another cluster"):
        load_map(catalog, replace(fleet.map, cluster_id=uuid4()))


def test_a_change_reaches_a_program_by_notification(fleet, eventually):
    with open_kit(fleet.settings(poll_interval_s=3600.0)) as kit, fleet.admin() as catalog:
        eventually(lambda: listeners(catalog))
        changes.pin(catalog, "told", 5)
        eventually(lambda: kit.locate("told").shard == 5)


def test_a_change_is_found_by_polling_when_nobody_tells(fleet, eventually):
    with open_kit(fleet.settings(poll_interval_s=0.2)) as kit, fleet.admin() as catalog:
        shard = (kit.locate("polled").shard + 1) % 16
        with catalog.transaction():  # as every change: a version is seen with all that belongs to it
            catalog.execute("UPDATE shardkit_catalog.cluster SET map_version = map_version + 1")
            catalog.execute(
                "INSERT INTO shardkit_catalog.pins SELECT 'polled', %s, map_version FROM shardkit_catalog.cluster", (shard,)
            )
        eventually(lambda: kit.locate("polled").shard == shard)


def test_a_killed_listener_comes_back(fleet, eventually):
    with open_kit(fleet.settings(poll_interval_s=3600.0)) as kit, fleet.admin() as catalog:
        first = eventually(lambda: listeners(catalog))
        catalog.execute("SELECT pg_terminate_backend(pid) FROM unnest(%s::int[]) AS pid", (first,))
        eventually(lambda: listeners(catalog) and listeners(catalog) != first)
        changes.pin(catalog, "told again", 6)
        eventually(lambda: kit.locate("told again").shard == 6)


def listeners(catalog):
    rows = catalog.execute(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%' AND state = 'idle'"
    )
    return sorted(pid for (pid,) in rows)


def test_a_change_planned_on_an_older_map_is_refused(fleet):
    with fleet.admin() as catalog:
        version = load_map(catalog).version
        with pytest.raises(MapConflictError, match="nothing was changed"):
            with changes.change(catalog, expected=version - 1):
                pytest.fail("the block must not run")
        with changes.change(catalog, expected=version) as new:
            assert new == version + 1
        assert load_map(catalog).version == version + 1


def test_of_two_concurrent_changes_one_is_refused(fleet):
    results = []
    with fleet.admin() as catalog:
        version = load_map(catalog).version
    barrier = threading.Barrier(4)

    def work():
        with fleet.admin() as mine:
            barrier.wait()
            try:
                with changes.change(mine, expected=version):
                    results.append("done")
            except MapConflictError:
                results.append("refused")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["done", "refused", "refused", "refused"]


def test_a_change_that_fails_changes_nothing(fleet):
    with fleet.admin() as catalog:
        version = load_map(catalog).version
        with pytest.raises(MapConflictError, match="epoch"):
            changes.flip(catalog, 3, server="pg1", expected_epoch=99)
        with pytest.raises(CatalogError, match="still holds shards"):
            changes.remove_server(catalog, "pg1")
        with pytest.raises(CatalogError, match="in the map already"):
            changes.add_server(catalog, fleet.map.server("pg1"))
        with pytest.raises(CatalogError, match="in the map already"):
            changes.add_server(catalog, Server("pg9", "", fleet.map.server("pg1").server_id))
        with pytest.raises(UnknownShardError):
            changes.pin(catalog, "nowhere", 4095)
        assert load_map(catalog).version == version


def test_a_pin_to_and_from_a_shard_moves_the_route(fleet):
    with open_kit(fleet.settings()) as kit, fleet.admin() as catalog:
        home = kit.locate("wanderer").shard
        changes.pin(catalog, "wanderer", (home + 1) % 16)
        kit.refresh()
        assert kit.locate("wanderer").shard == (home + 1) % 16
        changes.pin(catalog, "wanderer", None)
        kit.refresh()
        assert kit.locate("wanderer").shard == home
        assert "wanderer" not in kit.map.pins


def test_an_operator_reaches_a_server_that_was_added_later(fleet):
    with open_kit(fleet.settings()) as kit, fleet.admin() as catalog:
        shard = kit.map.shards_on("pg1")[-1]
        with kit.shard(shard).session() as s:
            s.scalar(COUNT)
        changes.add_server(catalog, Server("pg3", fleet.map.server("pg1").dsn, uuid4()))
        epoch = kit.map.placement(shard).epoch
        changes.flip(catalog, shard, server="pg3", expected_epoch=epoch)
        try:
            kit.refresh()
            with kit.shard(shard).session() as s:
                assert s.route.server == "pg3"
                with pytest.raises(WrongServerError):  # the same database under another name
                    s.scalar(COUNT)
        finally:
            catalog.execute(
                "UPDATE shardkit_catalog.placements SET server = 'pg1', epoch = %s WHERE shard = %s", (epoch, shard)
            )
            changes.remove_server(catalog, "pg3")


def test_an_empty_catalog_says_what_to_do(shardkit_databases):
    databases = shardkit_databases(0)
    with pytest.raises(NotInitializedError, match="shardkit init"):
        ShardKit(catalog_url=databases.catalog_url)


def test_a_closed_watch_leaves_no_connection(fleet, eventually):
    with fleet.admin() as catalog:
        for _ in range(5):
            watch = MapWatch(fleet.settings(application_name="closed watch"))
            watch.close()
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'closed watch%'"
        eventually(lambda: catalog.execute(query).fetchone() == (0,))  # a backend whose client has left takes its time to end


def test_a_flip_and_a_pin_to_the_shard_that_moves_wait_for_each_other_in_turn(fleet, tenant, eventually):
    route = fleet.map.locate(tenant)
    flipped = []
    with fleet.admin() as catalog, fleet.admin() as operator, fleet.admin() as watcher:
        move = journal.begin(
            operator, shard=route.shard, source=route.server, target=fleet.other(route.server), epoch=route.epoch
        )
        working = journal.Journal(operator, move.id)
        thread = threading.Thread(target=lambda: flipped.append(working.flip()))
        with changes.change(catalog, expected=None) as version:
            thread.start()
            eventually(lambda: waits(watcher, operator.info.backend_pid))
            catalog.execute(changes.SQL["put_pin"], {"tenant": "deadlocked", "shard": route.shard, "version": version})
        thread.join()
        assert flipped == [None]
        assert load_map(catalog).placement(route.shard).epoch == route.epoch + 1
        watcher.execute("UPDATE shardkit_catalog.placements SET server = %s, epoch = %s WHERE shard = %s",
                        (route.server, route.epoch, route.shard))  # fmt: skip
        changes.pin(catalog, "deadlocked", None)
        watcher.execute("UPDATE shardkit_catalog.moves SET ended = true WHERE id = %s", (move.id,))


def waits(watcher, pid):
    """Whether a session waits for a lock."""
    asked = "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = %s"
    return watcher.execute(asked, (pid,)).fetchone() == (True,)
