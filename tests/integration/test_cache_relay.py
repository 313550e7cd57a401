"""The relay: what psql commits is not read older for long; killed between any two steps, it misses nothing."""

from __future__ import annotations

import contextlib
import enum
import threading

import psycopg
import pytest
from cachelab import Note, Photo, cached_fleet_on
from sqlalchemy import Column, Enum

from shardkit.catalog.membership import join, leave, plan_joining, plan_leaving
from shardkit.core.names import relay_slot_name
from shardkit.errors import CacheRelayError, CacheUnavailableError
from shardkit.relay import Relay, from_text, whole_xid

TENANT = "acme"


@pytest.fixture(scope="module")
def fleet(local_cluster):
    with cached_fleet_on(local_cluster) as fleet:
        yield fleet


@pytest.fixture
def relay(kit):
    warnings = []
    with contextlib.closing(Relay(kit, [Photo, Note], warn=warnings.append)) as relay:
        relay.warnings = warnings
        relay.prepare()
        relay.run_once()
        yield relay
        relay.remove()


@pytest.fixture
def psql(fleet, kit):
    route = kit.locate(TENANT)
    with fleet.admin(route.server) as connection:
        connection.execute(f"SET search_path TO {route.schema}")
        yield connection


@pytest.fixture
def whole(psql):
    """Old rows are in the log as a whole."""
    psql.execute("ALTER TABLE photos REPLICA IDENTITY FULL")
    yield
    psql.execute("ALTER TABLE photos REPLICA IDENTITY DEFAULT")


@pytest.fixture
def key(kit, request):
    with kit.begin(TENANT) as s:
        photo = Photo(user_id=hash(request.node.name) % 10**6, slug=request.node.name, title="first")
        s.add(photo)
        s.flush()
        return photo.id


def seen(kit, key, slug):
    """By primary key, and by unique key."""
    one, two = kit.cache.get_row(Photo, key, tenant=TENANT), kit.cache.get_row(Photo, slug, by="slug", tenant=TENANT)
    return one and one.title, two and two.title


def test_update_by_psql_is_overtaken(kit, relay, psql, key, request):
    slug = request.node.name
    assert seen(kit, key, slug) == ("first", "first")
    psql.execute("UPDATE photos SET title = 'by hand' WHERE id = %s", (key,))
    assert seen(kit, key, slug) == ("first", "first")
    assert relay.run_once() == 2
    assert seen(kit, key, slug) == ("by hand", "by hand")
    assert relay.run_once() == 0
    assert kit.cache.verify(Photo).stale == ()


def test_what_shardkit_wrote_is_left_alone(kit, relay, key, request):
    with kit.begin(TENANT) as s:
        s.get(Photo, key).title = "second"
    assert seen(kit, key, request.node.name) == ("second", "second")
    hits = kit.cache.stats().hits
    assert relay.run_once() == 0
    assert seen(kit, key, request.node.name) == ("second", "second")
    assert kit.cache.stats().hits == hits + 2


def test_load_under_way_is_not_filled_over_it(kit, relay, psql, key, request):
    """It read before the commit, and would fill after the relay has passed."""
    fill = kit.cache._filler.fill

    def late(*given):
        kit.cache._filler.fill = fill
        psql.execute("UPDATE photos SET title = 'by hand' WHERE id = %s", (key,))
        assert relay.run_once() >= 1
        return fill(*given)

    kit.cache._filler.fill = late
    assert seen(kit, key, request.node.name)[0] == "first"
    assert seen(kit, key, request.node.name) == ("by hand", "by hand")


@pytest.mark.usefixtures("whole")
def test_delete_and_change_of_a_key_are_overtaken(kit, relay, psql, key, request):
    slug = request.node.name
    assert seen(kit, key, slug) == ("first", "first")
    psql.execute("UPDATE photos SET slug = 'other' WHERE id = %s", (key,))
    relay.run_once()
    assert seen(kit, key, slug) == ("first", None)
    psql.execute("DELETE FROM photos WHERE id = %s", (key,))
    relay.run_once()
    assert seen(kit, key, "other") == (None, None)


def test_delete_that_does_not_say_whose_it_was_is_warned_of(kit, relay, psql, key, request):
    assert any("REPLICA IDENTITY FULL" in text for text in relay.warnings)
    seen(kit, key, request.node.name)
    psql.execute("DELETE FROM photos WHERE id = %s", (key,))
    assert relay.run_once() == 0
    assert any("whose they were" in text for text in relay.warnings)
    kit.cache.invalidate(Photo, key, tenant=TENANT)
    kit.cache.invalidate(Photo, request.node.name, by="slug", tenant=TENANT)


def test_server_without_shards_keeps_no_slot(fleet, kit, relay, shardkit_databases):
    settings, url = fleet.settings(), shardkit_databases(1).servers["pg1"]
    names = [relay_slot_name(kit.map.cluster_id, name) for name in ("pg9", "before")]
    with psycopg.connect(url, autocommit=True) as there:

        def make_slots():
            for name in names:
                there.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (name,))

        def slots():
            return there.execute("SELECT count(*) FROM pg_replication_slots WHERE database = current_database()").fetchone()

        join(settings, plan_joining(settings, "pg9", url))
        try:
            make_slots()
            kit.refresh()
            relay.prepare()  # it was drained: there is nothing to be followed
            assert slots() == (0,)
            make_slots()
        finally:
            leave(settings, plan_leaving(settings, "pg9"))
        assert slots() == (0,)
        kit.refresh()
        relay.prepare()
        assert "pg9" not in relay._feeds


def test_server_that_is_always_written_to_keeps_no_other_waiting(kit, relay, psql, key, monkeypatch):
    overtake, rounds = kit.cache.overtake, []

    def written_to_meanwhile(route, changed):
        rounds.append(changed)
        assert len(rounds) < 4
        psql.execute("UPDATE photos SET title = title || '.' WHERE id = %s", (key,))
        return overtake(route, changed)

    monkeypatch.setattr(kit.cache, "overtake", written_to_meanwhile)
    psql.execute("UPDATE photos SET title = 'by hand' WHERE id = %s", (key,))
    relay.run_once()
    assert len(rounds) == 1


def test_key_of_an_enum_that_is_stored_by_its_values():
    class Mood(enum.Enum):
        GLAD = "g"

    by_name = Column("mood", Enum(Mood))
    by_value = Column("mood", Enum(Mood, values_callable=lambda members: [member.value for member in members]))
    assert from_text(by_name, "GLAD") is from_text(by_value, "g") is Mood.GLAD


def test_truncate_is_overtaken(kit, relay, psql, key, request):
    seen(kit, key, request.node.name)
    psql.execute("TRUNCATE photos CASCADE")
    assert relay.run_once() >= 2
    assert seen(kit, key, request.node.name) == (None, None)


def test_relay_that_died_before_it_passed_sees_it_again(kit, relay, psql, key, request):
    seen(kit, key, request.node.name)
    psql.execute("UPDATE photos SET title = 'by hand' WHERE id = %s", (key,))
    honest, kit.cache.overtake = kit.cache.overtake, lambda *_: (_ for _ in ()).throw(CacheUnavailableError("gone"))
    with pytest.raises(CacheUnavailableError):
        relay.run_once()
    kit.cache.overtake = honest
    with contextlib.closing(Relay(kit, [Photo, Note], warn=print)) as another:
        another.prepare()
        assert another.run_once() == 2
    assert seen(kit, key, request.node.name) == ("by hand", "by hand")


def test_what_was_stored_before_the_slot_is_forgotten(kit, psql, key, request):
    seen(kit, key, request.node.name)
    psql.execute("UPDATE photos SET title = 'by hand' WHERE id = %s", (key,))
    with contextlib.closing(Relay(kit, [Photo, Note], warn=lambda _: None)) as relay:
        relay.prepare()
        assert seen(kit, key, request.node.name) == ("by hand", "by hand")
        relay.remove()
        relay.remove()
        with pytest.raises(CacheRelayError, match="slot"):
            relay.run_once()


def test_it_follows_a_server_to_its_new_address(fleet, kit, relay, psql, key, request):
    server = kit.locate(TENANT).server
    with fleet.at_another_address(server):
        kit.refresh()
        relay.prepare()
        assert "localhost" in relay._feeds[server].url
        assert seen(kit, key, request.node.name) == ("first", "first")
        psql.execute("UPDATE photos SET title = 'by hand' WHERE id = %s", (key,))
        assert relay.run_once() > 0
        assert seen(kit, key, request.node.name) == ("by hand", "by hand")
    kit.refresh()
    relay.prepare()


def test_it_follows_until_it_is_told_to_stop(kit, relay, psql, key, request, eventually):
    stop = threading.Event()
    thread = threading.Thread(target=relay.run, args=(stop,))
    thread.start()
    try:
        assert seen(kit, key, request.node.name) == ("first", "first")
        psql.execute("UPDATE photos SET title = 'by hand' WHERE id = %s", (key,))
        eventually(lambda: seen(kit, key, request.node.name) == ("by hand", "by hand"))
    finally:
        stop.set()
        thread.join(120)
    assert not thread.is_alive()


def test_lower_half_of_a_transaction_id_is_completed():
    assert whole_xid(7, now=9) == 7
    assert whole_xid(7, now=(3 << 32) + 9) == (3 << 32) + 7
    assert whole_xid(0xFFFF_FFFF, now=(3 << 32) + 9) == (2 << 32) + 0xFFFF_FFFF


def test_keys_are_read_as_postgresql_writes_them(kit, psql):
    from sqlalchemy import Boolean, Column, Date, DateTime, Integer, LargeBinary, String, Uuid

    for kind, literal in [
        (Integer(), "7"),
        (String(), "'a'::text"),
        (Boolean(), "true"),
        (Boolean(), "false"),
        (Date(), "date '2026-01-02'"),
        (LargeBinary(), "'\\x00ff'::bytea"),
        (DateTime(), "timestamp '2026-01-02 03:04:05.000006'"),
        (DateTime(timezone=True), "timestamptz '2026-01-02 03:04:05+02'"),
        (Uuid(), "uuid '00000000-0000-0000-0000-000000000005'"),
    ]:
        value, text = psql.execute(f"SELECT {literal}, format('%s', {literal})").fetchone()  # as its output function writes it
        assert from_text(Column("c", kind), text) == value
    assert from_text(Column("c", Integer()), None) is None
