# Generated from tests/integration/async_/test_cache.py by tests/generate_sync.py: change that file instead.
"""The cache through the kit: what is read after a commit is never older, whichever way it was written."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from cachelab import Album, Note, Photo, cached_fleet_on
from sqlalchemy import DDL, Text, delete, func, insert, inspect, literal_column, select, text, update

from shardkit._sync import colour
from shardkit.core.cacheproto import tag
from shardkit.errors import CacheDeclarationError, CacheKeyError, ReadOnlyError, TenantLockedError, UnknownKeysError
from shardkit.orm.cached import entity_of
from shardkit.orm.cachevalues import RowValue


@pytest.fixture(scope="module")
def fleet(local_cluster):
    with cached_fleet_on(local_cluster) as fleet:
        yield fleet


def add(kit, tenant, *, slug="a", user=1, **given):
    with kit.begin(tenant) as s:
        photo = Photo(user_id=user, slug=slug, title="first", **given)
        s.add(photo)
        s.flush()
        return photo.id


def title_of(kit, tenant, key):
    found = kit.cache.get(Photo, key, tenant=tenant)
    return found and found.title


def by_pk_unique_and_list(kit, tenant, key, *, user=1, slug="a"):
    """Titles as the three kinds of keys have them."""
    one = kit.cache.get(Photo, key, tenant=tenant)
    two = kit.cache.get(Photo, slug, by="slug", tenant=tenant)
    three = kit.cache.list(Photo, user, by="user_id", tenant=tenant)
    return one and one.title, two and two.title, [photo.title for photo in three]


def test_second_read_asks_redis_only(kit, tenant):
    key = add(kit, tenant)
    title_of(kit, tenant, key)
    loads, hits = kit.cache.counts.loads, kit.cache.counts.hits
    assert title_of(kit, tenant, key) == "first"
    assert (kit.cache.counts.loads, kit.cache.counts.hits) == (loads, hits + 1)


def test_absence_is_kept_until_the_row_comes(kit, tenant):
    assert kit.cache.get(Photo, "later", by="slug", tenant=tenant) is None
    assert kit.cache.list(Photo, 1, by="user_id", tenant=tenant) == []
    loads = kit.cache.counts.loads
    assert kit.cache.get(Photo, "later", by="slug", tenant=tenant) is None
    assert kit.cache.counts.loads == loads
    key = add(kit, tenant, slug="later")
    assert by_pk_unique_and_list(kit, tenant, key, slug="later") == ("first", "first", ["first"])


def flush_attribute(s, key):
    (s.get(Photo, key)).title = "second"


def flush_cached_instance(s, key, kit):
    (kit.cache.get(Photo, key, session=s)).title = "second"


def orm_update(s, key):
    assert (s.execute(update(Photo).where(Photo.id == key).values(title="second"))).rowcount == 1


def core_update(s, key):
    table = Photo.__table__
    assert (s.execute(update(table).where(table.c.id == key).values(title="second"))).rowcount == 1


def in_a_savepoint(s, key):
    with s.begin_nested():
        (s.get(Photo, key)).title = "second"


def after_a_savepoint_that_was_rolled_back(s, key):
    photo = s.get(Photo, key)
    savepoint = s.begin_nested()
    photo.title = "third"
    s.flush()
    savepoint.rollback()
    photo.title = "second"


def upsert(s, key):
    from sqlalchemy.dialects.postgresql import insert as pg_insert

    statement = pg_insert(Photo).values(id=key, user_id=1, slug="a", title="x", tenant_id=s.tenant)
    s.execute(statement.on_conflict_do_update(index_elements=["id"], set_={"title": "second"}))


@pytest.mark.parametrize(
    "write",
    [flush_attribute, orm_update, core_update, in_a_savepoint, after_a_savepoint_that_was_rolled_back, upsert],
    ids=lambda f: f.__name__,
)
def test_write_is_seen_by_the_next_read(kit, tenant, write):
    key = add(kit, tenant)
    assert by_pk_unique_and_list(kit, tenant, key) == ("first", "first", ["first"])
    with kit.begin(tenant) as s:
        write(s, key)
    assert by_pk_unique_and_list(kit, tenant, key) == ("second", "second", ["second"])


def test_cached_instance_can_be_changed_and_written(kit, tenant):
    key = add(kit, tenant)
    title_of(kit, tenant, key)
    with kit.begin(tenant) as s:
        flush_cached_instance(s, key, kit)
    assert title_of(kit, tenant, key) == "second"


def test_transaction_begun_by_hand_marks_too(kit, tenant):
    key = add(kit, tenant)
    title_of(kit, tenant, key)
    with kit.session(tenant) as s:
        with s.begin():
            (s.get(Photo, key)).title = "second"
        assert title_of(kit, tenant, key) == "second"


def test_outer_commit_with_an_open_savepoint_marks_too(kit, tenant):
    key = add(kit, tenant)
    title_of(kit, tenant, key)
    with kit.session(tenant) as s:
        photo = s.get(Photo, key)
        s.begin_nested()
        photo.title = "second"
        s.commit()
    assert title_of(kit, tenant, key) == "second"


def test_old_and_new_values_of_a_key_are_marked(kit, tenant):
    key = add(kit, tenant)
    by_pk_unique_and_list(kit, tenant, key)
    assert kit.cache.get(Photo, "b", by="slug", tenant=tenant) is None
    with kit.session(tenant) as s:
        photo = s.get(Photo, key)
        s.commit()  # expires it: the old values have to be loaded before they are gone
        photo.slug, photo.user_id = "b", 2
        s.commit()
    assert kit.cache.get(Photo, "a", by="slug", tenant=tenant) is None
    assert kit.cache.list(Photo, 1, by="user_id", tenant=tenant) == []
    assert by_pk_unique_and_list(kit, tenant, key, user=2, slug="b") == ("first", "first", ["first"])


def test_delete_is_seen(kit, tenant):
    key = add(kit, tenant)
    for way in ("object", "bulk"):
        by_pk_unique_and_list(kit, tenant, key)
        with kit.begin(tenant) as s:
            if way == "object":
                s.delete(s.get(Photo, key))
            else:
                assert (s.execute(delete(Photo).where(Photo.user_id == 1))).rowcount == 1
                kit.cache.invalidate(Note, session=s)  # none of them hangs on it
        assert by_pk_unique_and_list(kit, tenant, key) == (None, None, [])
        key = add(kit, tenant)


def test_bulk_insert_is_seen_by_lists(kit, tenant):
    assert kit.cache.list(Photo, 1, by="user_id", tenant=tenant) == []
    with kit.begin(tenant) as s:
        s.execute(insert(Photo), [{"user_id": 1, "slug": f"s{n}", "tenant_id": tenant} for n in range(5)])
    found = kit.cache.list(Photo, 1, by="user_id", tenant=tenant)
    assert len(found) == 3  # its limit, the newest first
    assert [photo.id for photo in found] == sorted((photo.id for photo in found), reverse=True)


def current_xid(s):
    return (s.execute(select(func.pg_current_xact_id().cast(Text)))).scalar_one()


def known_xid(s):
    return (colour.driver_of(s)).commit_xid


@pytest.mark.parametrize("write", [flush_attribute, orm_update, in_a_savepoint, upsert], ids=lambda f: f.__name__)
def test_the_transactions_id_comes_with_the_write(kit, tenant, write):
    key = add(kit, tenant)
    with kit.session(tenant) as s:
        for again in (write, orm_update):  # the second transaction of a session is another one
            again(s, key)
            s.flush()
            known = known_xid(s)
            assert known is not None
            assert known == current_xid(s)
            s.commit()


def end_by_text(s):
    s.execute(text("ROLLBACK"))
    s.execute(text("BEGIN"))


def end_by_ddl(s):
    s.execute(DDL("ROLLBACK"))
    s.execute(DDL("BEGIN"))


def end_on_the_driver(s):
    driver = colour.driver_of(s)
    driver.execute("ROLLBACK")
    driver.execute("BEGIN")


def end_by_the_drivers_rollback(s):
    driver = colour.driver_of(s)
    driver.rollback()
    s.execute(text("BEGIN"))


def end_within_a_select(s):
    s.execute(select(literal_column("1; ROLLBACK; BEGIN; SELECT 1")))


@pytest.mark.parametrize(
    "end",
    [end_by_text, end_by_ddl, end_on_the_driver, end_by_the_drivers_rollback, end_within_a_select],
    ids=lambda f: f.__name__,
)
def test_an_id_that_may_be_of_an_ended_transaction_is_forgotten(kit, tenant, end):
    key = add(kit, tenant)
    assert title_of(kit, tenant, key) == "first"
    with kit.session(tenant) as s:
        s.execute(update(Photo).where(Photo.id == key).values(title="second"))
        ended = known_xid(s)
        end(s)
        assert known_xid(s) is None
        schema = s.route.schema
        s.execute(text(f"SET LOCAL search_path TO {schema}"))
        s.execute(text("SELECT set_config('shardkit.tenant', :tenant, true)"), {"tenant": str(tenant)})
        s.execute(update(Photo).where(Photo.id == key).values(title="third"))
        assert current_xid(s) != ended
        s.commit()
    assert title_of(kit, tenant, key) == "third"


def test_an_update_of_no_row_has_no_id(kit, tenant):
    with kit.session(tenant) as s:
        s.execute(update(Photo).where(Photo.id == 1).values(title="second"))
        assert known_xid(s) is None
        s.commit()


def test_rolled_back_write_leaves_the_truth(kit, tenant):
    key = add(kit, tenant)
    title_of(kit, tenant, key)
    with pytest.raises(ZeroDivisionError):
        with kit.begin(tenant) as s:
            (s.get(Photo, key)).title = "second"
            s.flush()
            raise ZeroDivisionError
    assert title_of(kit, tenant, key) == "first"


def test_open_transaction_hides_its_rows_from_no_one(kit, tenant):
    key = add(kit, tenant)
    title_of(kit, tenant, key)
    with kit.session(tenant) as s:
        s.execute(update(Photo).where(Photo.id == key).values(title="second"))
        assert title_of(kit, tenant, key) == "first"
        assert (kit.cache.get(Photo, key, session=s)).title == "second"  # its own write, past the cache
        assert [p.title for p in kit.cache.list(Photo, 1, by="user_id", session=s)] == ["second"]
        s.commit()
    assert title_of(kit, tenant, key) == "second"


def raw_update(s, key):
    s.execute(text("UPDATE photos SET title = 'raw' WHERE id = :key"), {"key": key})


def core_on_the_connection(s, key):
    connection = s.connection()
    table = Photo.__table__
    connection.execute(update(table).where(table.c.id == key).values(title="raw"))


def bulk_change_of_a_key(s, key):
    s.execute(update(Photo).where(Photo.id == key).values(slug="other"))


def returning_of_ones_own(s, key):
    (s.execute(update(Photo).where(Photo.id == key).values(title="raw").returning(Photo.title))).all()


def update_by_primary_keys(s, key):
    s.execute(update(Photo), [{"id": key, "title": "raw"}])


UNTOLD = [raw_update, core_on_the_connection, bulk_change_of_a_key, returning_of_ones_own, update_by_primary_keys]


@pytest.mark.parametrize("write", UNTOLD, ids=lambda f: f.__name__)
def test_write_that_does_not_tell_its_rows_is_stopped_before_commit(kit, tenant, write):
    key = add(kit, tenant)
    with pytest.raises(UnknownKeysError, match="photos"):
        with kit.begin(tenant) as s:
            write(s, key)
    assert title_of(kit, tenant, key) == "first"


@pytest.mark.parametrize("write", UNTOLD, ids=lambda f: f.__name__)
def test_named_rows_of_such_a_write_are_marked(kit, tenant, write):
    key = add(kit, tenant)
    title_of(kit, tenant, key)
    with kit.begin(tenant) as s:
        write(s, key)
        kit.cache.invalidate(Photo, key, session=s)
    with kit.read(tenant) as s:
        assert (kit.cache.get(Photo, key, tenant=tenant)).title == (s.get(Photo, key)).title


def test_read_only_statements_with_a_tables_name_are_not_stopped(kit, tenant):
    key = add(kit, tenant)
    with kit.begin(tenant) as s:
        assert s.scalar(text("SELECT title FROM photos WHERE id = :key"), {"key": key}) == "first"


def test_server_side_cascades_are_marked(kit, tenant):
    with kit.begin(tenant) as s:
        album = Album(name="spring")
        s.add(album)
        s.flush()
        number = album.id
    key = add(kit, tenant, album_id=number)
    with kit.begin(tenant) as s:
        note = Note(photo_id=key, text="n")
        s.add(note)
        s.flush()
        noted = note.id
    by_pk_unique_and_list(kit, tenant, key)
    assert (kit.cache.get(Note, noted, tenant=tenant)).photo_id == key
    with kit.begin(tenant) as s:
        s.delete(s.get(Album, number))
    assert by_pk_unique_and_list(kit, tenant, key) == (None, None, [])
    assert (kit.cache.get(Note, noted, tenant=tenant)).photo_id is None  # two tables away


def test_bulk_delete_with_a_cascade_is_stopped(kit, tenant):
    with pytest.raises(UnknownKeysError, match="photos"):
        with kit.begin(tenant) as s:
            s.execute(delete(Album).where(Album.name == "none"))


def test_program_outside_can_name_what_it_changed(kit, fleet, tenant):
    key = add(kit, tenant)
    by_pk_unique_and_list(kit, tenant, key)
    route = kit.locate(tenant)
    with fleet.admin(route.server) as psql:
        psql.execute(f"UPDATE {route.schema}.photos SET title = 'by hand' WHERE id = %s", (key,))
    kit.cache.invalidate(Photo, key, tenant=tenant)
    assert by_pk_unique_and_list(kit, tenant, key) == ("by hand", "by hand", ["by hand"])


def test_neighbour_in_the_shard_sees_nothing(kit, neighbours):
    mine, other = neighbours
    key = add(kit, mine)
    assert title_of(kit, mine, key) == "first"
    assert title_of(kit, other, key) is None
    assert kit.cache.get_many(Photo, [key], tenant=other) == {}
    assert kit.cache.get(Photo, "a", by="slug", tenant=other) is None
    assert kit.cache.list(Photo, 1, by="user_id", tenant=other) == []
    with kit.session(mine) as s:
        with pytest.raises(TenantLockedError):
            kit.cache.get(Photo, key, tenant=other, session=s)


def test_operators_write_marks_the_tenants_keys(kit, tenant):
    key = add(kit, tenant)
    by_pk_unique_and_list(kit, tenant, key)
    with kit.shard(kit.locate(tenant).shard).begin() as s:
        (s.get(Photo, key)).title = "second"
    assert by_pk_unique_and_list(kit, tenant, key) == ("second", "second", ["second"])


def test_get_many_mixes_hits_misses_and_absent(kit, tenant):
    keys = [add(kit, tenant, slug=f"s{n}") for n in range(4)]
    title_of(kit, tenant, keys[1])
    found = kit.cache.get_many(Photo, [*keys, 5], tenant=tenant)
    assert list(found) == keys
    assert [photo.slug for photo in found.values()] == ["s0", "s1", "s2", "s3"]
    loads = kit.cache.counts.loads
    assert list(kit.cache.get_rows(Photo, [5, *keys], tenant=tenant)) == keys
    assert kit.cache.counts.loads == loads


def test_repeatable_read_and_locks_ask_postgresql(kit, tenant):
    key = add(kit, tenant)
    title_of(kit, tenant, key)
    hits = kit.cache.counts.hits
    with kit.session(tenant) as s:
        s.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        assert (kit.cache.get(Photo, key, session=s)).title == "first"
    with kit.session(tenant) as s:
        assert (kit.cache.get(Photo, key, session=s, with_for_update=True)).title == "first"
    assert kit.cache.counts.hits == hits
    with pytest.raises(CacheKeyError, match="with_for_update"):
        kit.cache.get(Photo, key, tenant=tenant, with_for_update=True)


def test_repeatable_read_fills_nothing(kit, tenant):
    key = add(kit, tenant)
    with kit.session(tenant) as s:
        s.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        s.scalar(select(Photo.title).where(Photo.id == key))
        with kit.begin(tenant) as w:
            (w.get(Photo, key)).title = "second"
        kit.cache.get_many(Photo, [key], session=s)
    assert title_of(kit, tenant, key) == "second"


def test_bad_keys_are_refused_before_anything_is_sent(kit, tenant):
    for wrong in ("1", 1.0, True, None, (1, 2)):
        with pytest.raises(CacheKeyError):
            kit.cache.get(Photo, wrong, tenant=tenant)
    with pytest.raises(CacheDeclarationError, match="title"):
        kit.cache.get(Photo, "x", by="title", tenant=tenant)
    with pytest.raises(CacheDeclarationError, match="list key"):
        kit.cache.list(Photo, "x", by="title", tenant=tenant)
    with pytest.raises(CacheDeclarationError, match="not cached"):
        kit.cache.get(Album, 1, tenant=tenant)


def test_instance_of_a_read_session_is_attached_and_read_only(kit, tenant):
    key = add(kit, tenant)
    with kit.read(tenant) as s:
        photo = kit.cache.get(Photo, key, session=s)
        assert inspect(photo).persistent
        assert photo is s.get(Photo, key)
        photo.title = "second"
        with pytest.raises(ReadOnlyError):
            s.flush()


def test_foreign_bytes_are_a_miss_and_are_replaced(kit, fleet, tenant, raw_redis):
    key = add(kit, tenant)
    for wrong in (b"V", b"", b"N" * 9, b"V\x01" + b"\0" * 40, b"M|x", b"{json}"):
        title_of(kit, tenant, key)
        (stored,) = raw_redis.keys(f"*photos::{tenant}:{key}")
        raw_redis.set(stored, wrong)
        assert title_of(kit, tenant, key) == "first"
    raw_redis.delete(stored)
    raw_redis.rpush(stored, "a list of somebody else's")
    assert title_of(kit, tenant, key) == "first"
    with kit.begin(tenant) as s:
        (s.get(Photo, key)).title = "second"
    assert title_of(kit, tenant, key) == "second"


def test_emptied_redis_waits_for_transactions_whose_markers_it_lost(kit, tenant, raw_redis):
    key = add(kit, tenant)
    title_of(kit, tenant, key)
    place = kit.cache.writer.place

    def flushed_meanwhile(driver, names):
        place(driver, names)
        raw_redis.flushall()

    with kit.session(tenant) as s:
        (s.get(Photo, key)).title = "second"
        kit.cache.writer.place = flushed_meanwhile
        unsettled = kit.cache.counts.unsettled
        s.flush()
        raw_redis.flushall()
        assert title_of(kit, tenant, key) == "first"
        assert kit.cache.counts.unsettled > unsettled  # not filled: that transaction may have had a marker
        s.commit()
        kit.cache.writer.place = place
    assert title_of(kit, tenant, key) == "second"
    loads = kit.cache.counts.loads
    assert title_of(kit, tenant, key) == "second"
    assert kit.cache.counts.loads == loads


def test_program_with_an_old_map_sees_what_was_written_after_the_move(open_kit, fleet, tenant):
    old, new = open_kit(), open_kit()
    key = add(old, tenant)
    assert title_of(old, tenant, key) == "first"
    fleet.move(old.locate(tenant), elsewhere=False)
    new.refresh()
    with new.begin(tenant) as s:
        (s.get(Photo, key)).title = "second"
    assert title_of(old, tenant, key) == "second"
    assert title_of(new, tenant, key) == "second"
    assert title_of(old, tenant, key) == "second"


def test_two_clusters_in_one_redis_do_not_meet(kit, fleet, tenant, raw_redis):
    key = add(kit, tenant)
    title_of(kit, tenant, key)
    (stored,) = raw_redis.keys(f"*photos::{tenant}:{key}")
    assert stored.startswith(f"sk:{{{tag(fleet.map.cluster_id.hex[:8], kit.locate(tenant).shard)}}}".encode())


def test_newer_versions_value_is_left_alone(kit, tenant, raw_redis):
    key = add(kit, tenant)
    title_of(kit, tenant, key)
    (stored,) = raw_redis.keys(f"*photos::{tenant}:{key}")
    value = raw_redis.get(stored)
    newer = value[:2] + b"\x00\x02" + value[4:]
    older = value[:2] + b"\x00\x00" + value[4:]
    raw_redis.set(stored, newer)
    assert title_of(kit, tenant, key) == "first"
    assert raw_redis.get(stored) == newer
    raw_redis.set(stored, older)
    assert title_of(kit, tenant, key) == "first"
    assert raw_redis.get(stored)[:8] == value[:8]


def test_time_zone_of_the_server_comes_back(kit, fleet, tenant):
    key = add(kit, tenant, taken=datetime(2026, 7, 1, 12, tzinfo=UTC))
    with kit.session(tenant) as s:
        s.execute(text("SET LOCAL timezone = 'Europe/Berlin'"))
        loaded = (kit.cache.get(Photo, key, session=s)).taken
        assert loaded.hour == 14
    again = (kit.cache.get(Photo, key, tenant=tenant)).taken
    assert (again, again.hour) == (loaded, 14)


def test_value_without_redis_comes_from_postgresql(open_kit, tenant):
    kit = open_kit(redis_url=None)
    key = add(kit, tenant)
    assert by_pk_unique_and_list(kit, tenant, key) == ("first", "first", ["first"])


def test_stats_count_what_was_done(open_kit, tenant):
    kit = open_kit()
    key = add(kit, tenant)
    before = kit.cache.stats()
    assert before.marks == 3  # primary key, unique key, list
    title_of(kit, tenant, key)
    title_of(kit, tenant, key)
    with kit.begin(tenant) as s:
        (s.get(Photo, key)).title = "second"
        s.flush()
        kit.cache.get(Photo, key, session=s)
    after = kit.cache.stats()
    assert (before.hits, before.misses, before.bypasses) == (0, 0, 0)  # a copy
    assert (after.hits, after.misses, after.loads, after.fills, after.bypasses, after.marks) == (1, 1, 1, 1, 1, 5)
    assert not after.breaker_open


def test_verify_finds_a_planted_stale_row(kit, fleet, tenant):
    keys = [add(kit, tenant, slug=f"v{n}") for n in range(3)]
    for key in keys:
        title_of(kit, tenant, key)
    found = kit.cache.verify(Photo)
    assert found.checked >= 3
    assert found.stale == ()
    route = kit.locate(tenant)
    with fleet.admin(route.server) as psql:  # a writer that passes us by, twice
        psql.execute(f"UPDATE {route.schema}.photos SET title = 'by hand' WHERE id = %s", (keys[0],))
        psql.execute(f"DELETE FROM {route.schema}.photos WHERE id = %s", (keys[1],))
    found = kit.cache.verify(Photo)
    assert sorted(found.stale) == sorted(f"photos::{tenant}:{key}" for key in keys[:2])
    kit.cache.invalidate(Photo, *keys, tenant=tenant)
    assert (kit.cache.verify(Photo)).stale == ()


def test_verify_is_not_misled_by_a_write_under_way(kit, tenant):
    key = add(kit, tenant)
    title_of(kit, tenant, key)
    honest, fetched = kit.cache._store.fetch, []

    def write_between(at, names):
        found = honest(at, names)
        if not fetched and names == [f"photos::{tenant}:{key}"]:
            fetched.append(found)
            with kit.begin(tenant) as s:
                (s.get(Photo, key)).title = "second"
        return found

    kit.cache._store.fetch = write_between
    found = kit.cache.verify(Photo)
    assert fetched
    assert (found.changing, found.stale) == (1, ())


def test_servers_that_may_evict_a_marker_are_warned_of(kit, raw_redis):
    assert (kit.cache.servers())["warnings"] == []
    try:
        raw_redis.config_set("maxmemory", "1gb")
        for policy, word in (("volatile-lru", "evict the marker"), ("noeviction", "no marker can be placed")):
            raw_redis.config_set("maxmemory-policy", policy)
            (warning,) = (kit.cache.servers())["warnings"]
            assert policy in warning
            assert word in warning
        raw_redis.config_set("maxmemory-policy", "allkeys-lfu")
        assert (kit.cache.servers())["warnings"] == []
    finally:
        raw_redis.config_set("maxmemory", 0)
        raw_redis.config_set("maxmemory-policy", "noeviction")


def test_late_filler_puts_nothing(kit, fleet, tenant):
    """Its lease ran out, or a writer came: whatever it loaded, somebody else's marker is there."""
    key = add(kit, tenant)
    honest, loaded = kit.cache._filler.fill, []

    def late(*given):
        loaded.append(given)
        if len(loaded) > 1:
            return honest(*given)
        with kit.begin(tenant) as s:
            (s.get(Photo, key)).title = "second"
        return honest(*given)

    kit.cache._filler.fill = late
    lost = kit.cache.stats().lost
    assert title_of(kit, tenant, key) == "first"  # it began before
    assert kit.cache.stats().lost == lost + 1
    assert title_of(kit, tenant, key) == "second"


def test_wait_for_a_dead_lease_holder_is_bounded(open_kit, tenant):
    dead, alive = open_kit(), open_kit()
    key = add(alive, tenant)
    title_of(alive, tenant, key)
    alive.cache.invalidate(Photo, key, tenant=tenant)
    route, entity = dead.locate(tenant), entity_of(Photo)
    name = entity.name_of(entity.primary, (key,), tenant)
    want = RowValue(entity, name)
    _, (answer,) = dead.cache._filler.leases(tag(dead.cache._cluster, route.shard), route, [want], [b""])
    assert answer[:1] == b"L"  # and never used
    busy = alive.cache.stats().busy
    assert title_of(alive, tenant, key) == "first"
    assert alive.cache.stats().busy == busy + 1


def test_row_over_its_limit_is_read_from_postgresql(kit, tenant, raw_redis):
    key = add(kit, tenant)
    with kit.begin(tenant) as s:
        (s.get(Photo, key)).title = "x" * 70_000
    for _ in range(2):
        assert len(title_of(kit, tenant, key)) == 70_000
    assert all(raw_redis.get(k)[:1] != b"V" for k in raw_redis.keys(f"*photos::{tenant}:{key}"))


def test_other_columns_than_ours_are_a_miss_that_is_replaced(kit, tenant, raw_redis):
    key = add(kit, tenant)
    title_of(kit, tenant, key)
    (stored,) = raw_redis.keys(f"*photos::{tenant}:{key}")
    value = raw_redis.get(stored)
    raw_redis.set(stored, value[:4] + b"\0\0\0\0" + value[8:])  # another fingerprint, of the same version
    assert title_of(kit, tenant, key) == "first"
    assert raw_redis.get(stored)[:8] == value[:8]


def test_value_of_another_term_is_a_miss(kit, tenant, raw_redis):
    key = add(kit, tenant)
    title_of(kit, tenant, key)
    (stored,) = raw_redis.keys(f"*photos::{tenant}:{key}")
    (barrier,) = raw_redis.keys(f"{stored.decode().partition(':photos')[0]}:@b")
    value = raw_redis.get(stored)
    raw_redis.set(stored, value.replace(b"first", b"older")[:-8] + b"12345678")  # as a replica may bring it back
    raw_redis.set(barrier, raw_redis.get(barrier)[:-8] + b"12345678")
    assert title_of(kit, tenant, key) == "first"
    assert raw_redis.get(stored)[-9:] == raw_redis.get(barrier)[-9:] == value[-9:]
