# Generated from tests/integration/async_/test_cache_untold.py by tests/generate_sync.py: change that file instead.
"""Writes to cached tables in less usual ways: each is marked before COMMIT, or stopped."""

from __future__ import annotations

import pytest
from cachelab import Account, Album, Entry, Genre, Kind, Opera, Page, Photo, Review, Song, Vote, cached_fleet_on
from sqlalchemy import DDL, event, func, insert, select, text, update

from shardkit.errors import UnknownKeysError
from shardkit.orm.cachescope import inner_of


@pytest.fixture(scope="module")
def fleet(local_cluster):
    with cached_fleet_on(local_cluster) as fleet:
        yield fleet


def add(kit, tenant, made):
    with kit.begin(tenant) as s:
        s.add(made)
        s.flush()
        return made.id


def add_photo(kit, tenant, *, slug="a", user=1):
    return add(kit, tenant, Photo(user_id=user, slug=slug, title="first"))


def title_of(kit, tenant, key):
    found = kit.cache.get(Photo, key, tenant=tenant)
    return found and found.title


def test_markers_are_placed_before_a_commit_that_travels_with_an_insert(kit, tenant, monkeypatch):
    key = add_photo(kit, tenant)
    assert title_of(kit, tenant, key) == "first"
    place, idle = kit.cache.writer.place, []

    def noting(driver, names):
        idle.append(driver.idle)
        place(driver, names)

    monkeypatch.setattr(kit.cache.writer, "place", noting)
    with kit.begin(tenant) as s:
        s.execute(update(Photo).where(Photo.id == key).values(title="second"))
        s.add(Album(name="alone in its flush, and not cached"))
    assert idle == [False]
    assert title_of(kit, tenant, key) == "second"


def test_unknown_rows_stop_a_commit_that_would_travel_with_an_insert(kit, tenant):
    key = add_photo(kit, tenant)
    with pytest.raises(UnknownKeysError, match="photos"):
        with kit.begin(tenant) as s:
            s.execute(text("UPDATE photos SET title = 'raw' WHERE id = :key"), {"key": key})
            s.add(Album(name="alone in its flush, and not cached"))
    with kit.read(tenant) as s:
        assert (s.get(Photo, key)).title == "first"


def test_what_a_listener_writes_before_commit_is_marked(kit, tenant):
    key = add_photo(kit, tenant)
    assert title_of(kit, tenant, key) == "first"
    with kit.session(tenant) as s:
        inner = inner_of(s)
        s.connection()

        @event.listens_for(inner, "before_commit")
        def count(session):
            session.execute(update(Photo).where(Photo.id == key).values(title="second"))

        s.commit()
    assert title_of(kit, tenant, key) == "second"


def test_raw_sql_of_a_listener_stops_the_commit(kit, tenant):
    key = add_photo(kit, tenant)
    with kit.session(tenant) as s:
        inner = inner_of(s)
        s.connection()

        @event.listens_for(inner, "before_commit")
        def count(session):
            session.execute(text("UPDATE photos SET title = 'raw' WHERE id = :key"), {"key": key})

        with pytest.raises(UnknownKeysError, match="photos"):
            s.commit()


def test_keys_of_a_row_that_was_replaced_are_marked(kit, tenant):
    """DELETE and INSERT of one primary key are one UPDATE to SQLAlchemy."""
    key = add_photo(kit, tenant)
    assert (kit.cache.get(Photo, "a", by="slug", tenant=tenant)).id == key
    assert [p.id for p in kit.cache.list(Photo, 1, by="user_id", tenant=tenant)] == [key]
    with kit.begin(tenant) as s:
        s.delete(s.get(Photo, key))
        s.add(Photo(id=key, user_id=2, slug="b", title="second"))
    assert title_of(kit, tenant, key) == "second"
    assert kit.cache.get(Photo, "a", by="slug", tenant=tenant) is None
    assert kit.cache.list(Photo, 1, by="user_id", tenant=tenant) == []
    assert (kit.cache.get(Photo, "b", by="slug", tenant=tenant)).title == "second"


def test_list_by_a_column_that_every_update_sets(kit, tenant):
    keys = [add(kit, tenant, Page(book_id=1, text="first")) for _ in range(2)]
    assert [p.id for p in kit.cache.list(Page, 1, by="book_id", tenant=tenant)] == keys[::-1]
    with kit.begin(tenant) as s:
        (s.get(Page, keys[0])).text = "second"
    assert [p.id for p in kit.cache.list(Page, 1, by="book_id", tenant=tenant)] == keys


def test_old_value_of_a_computed_key_is_marked(kit, tenant):
    key = add(kit, tenant, Account(email="Ann@example.com"))
    assert (kit.cache.get(Account, "ann@example.com", by="address", tenant=tenant)).id == key
    with kit.begin(tenant) as s:
        (s.get(Account, key)).email = "Bob@example.com"
    assert kit.cache.get(Account, "ann@example.com", by="address", tenant=tenant) is None
    assert (kit.cache.get(Account, "bob@example.com", by="address", tenant=tenant)).id == key
    with pytest.raises(UnknownKeysError, match="accounts"):
        with kit.begin(tenant) as s:
            s.execute(update(Account).where(Account.id == key).values(email="Cid@example.com"))


def in_capitals(s, key):
    s.execute(text("UPDATE Photos SET title = 'raw' WHERE id = :key"), {"key": key})


def below_another_write(s, key):
    changed = update(Photo).where(Photo.id == key).values(title="raw").returning(Photo.user_id).cte("changed")
    source = select(func.cast(changed.c.user_id, Photo.user_id.type), func.now()).add_cte(changed)
    s.execute(insert(Page).from_select(["book_id", "changed_at"], source))


def as_ddl(s, key):
    s.execute(DDL(f"UPDATE photos SET title = 'raw' WHERE id = {key}"))


@pytest.mark.parametrize("write", [in_capitals, below_another_write, as_ddl], ids=lambda f: f.__name__)
def test_write_that_does_not_tell_its_rows_is_stopped(kit, tenant, write):
    key = add_photo(kit, tenant)
    with pytest.raises(UnknownKeysError, match="photos"):
        with kit.begin(tenant) as s:
            write(s, key)


def test_deleting_a_row_that_points_to_itself(kit, tenant):
    with kit.begin(tenant) as s:
        top = Entry(text="top")
        s.add(top)
        s.flush()
        top.top_id = top.id
        below = Entry(text="below", top_id=top.id)
        s.add(below)
        s.flush()
        keys = top.id, below.id
    assert list(kit.cache.get_many(Entry, keys, tenant=tenant)) == list(keys)
    with kit.begin(tenant) as s:
        s.delete(s.get(Entry, keys[0]))
    assert kit.cache.get_many(Entry, keys, tenant=tenant) == {}


def test_on_update_cascade_has_to_be_named(kit, tenant):
    code = add(kit, tenant, Genre(code="pop"))
    key = add(kit, tenant, Song(genre="pop"))
    assert (kit.cache.get(Song, key, tenant=tenant)).genre == "pop"
    with pytest.raises(UnknownKeysError, match="songs"):
        with kit.begin(tenant) as s:
            (s.get(Genre, code)).code = "rock"
    with pytest.raises(UnknownKeysError, match="songs"):
        with kit.begin(tenant) as s:
            s.execute(update(Genre).where(Genre.id == code).values(code="rock"))
    with kit.begin(tenant) as s:
        (s.get(Genre, code)).code = "rock"
        s.flush()
        kit.cache.invalidate(Song, key, session=s)
    assert (kit.cache.get(Song, key, tenant=tenant)).genre == "rock"


def test_cascades_below_the_table_of_a_base_class_are_marked(kit, tenant):
    opera = add(kit, tenant, Opera())
    key = add(kit, tenant, Review(work_id=opera))
    assert (kit.cache.get(Review, key, tenant=tenant)).work_id == opera
    with kit.begin(tenant) as s:
        s.delete(s.get(Opera, opera))
    assert kit.cache.get(Review, key, tenant=tenant) is None


def test_lists_of_keys_with_an_enum_in_them(kit, tenant):
    with kit.begin(tenant) as s:
        s.add_all([Vote(item=1, kind=Kind.DOWN, title="no"), Vote(item=1, kind=Kind.UP, title="yes")])
    for _ in ("loaded", "stored"):
        found = kit.cache.list(Vote, 1, by="item", tenant=tenant)
        assert {(vote.kind, vote.title) for vote in found} == {(Kind.UP, "yes"), (Kind.DOWN, "no")}
    assert kit.cache.stats().corrupt == 0


def test_row_that_left_a_list_while_it_was_read(kit, tenant):
    keys = [add_photo(kit, tenant, slug=slug) for slug in ("a", "b")]
    rows = kit.cache._rows

    def left_meanwhile(*given):
        with kit.begin(tenant) as s:
            (s.get(Photo, keys[0])).user_id = 2
        return rows(*given)

    kit.cache._rows = left_meanwhile
    assert [p.id for p in kit.cache.list(Photo, 1, by="user_id", tenant=tenant)] == keys[1:]


def test_unique_key_that_the_session_has_not_flushed_yet(kit, tenant):
    add_photo(kit, tenant)
    assert kit.cache.get(Photo, "b", by="slug", tenant=tenant) is None
    with kit.session(tenant) as s:
        (kit.cache.get(Photo, "a", by="slug", session=s)).slug = "b"
        assert (kit.cache.get(Photo, "b", by="slug", session=s)).title == "first"
        assert kit.cache.get(Photo, "a", by="slug", session=s) is None


def test_forgetting_a_tenant_leaves_its_neighbours_markers(kit, neighbours, raw_redis):
    mine, other = neighbours
    key = add_photo(kit, mine)
    title_of(kit, mine, key)
    (stored,) = raw_redis.keys(f"*photos::{mine}:{key}")
    theirs = stored.decode().partition(":photos")[0] + f":likes:of,by:{other}:{mine}:7"
    raw_redis.set(theirs, b"M||0|1|99")
    assert kit.cache.forget(mine, shard=kit.locate(mine).shard) > 0
    assert raw_redis.get(stored) is None
    assert raw_redis.get(theirs) == b"M||0|1|99"


def test_outbox_of_many_transactions_is_drained_whole(kit, tenant):
    kit.cache.drain()
    with kit.shard(kit.locate(tenant).shard).begin() as s:
        s.execute(
            text("INSERT INTO shardkit_cache_outbox (xid, names) SELECT 1, ARRAY['x' || n] FROM generate_series(1, 1001) n")
        )
    assert kit.cache.drain() == 1001
    assert kit.cache.undrained() == 0


def test_many_keys_are_marked_some_at_a_time(kit, tenant, monkeypatch):
    asked, script = [], kit.cache._store._script

    def noting(source, tag, names, arguments):
        asked.append(len(names))
        return script(source, tag, names, arguments)

    monkeypatch.setattr(kit.cache._store, "_script", noting)
    kit.cache._store.mark("none", [f"k{n}" for n in range(2500)], xid=1, epoch=1, ttl_ms=1000)
    assert asked == [1000, 1000, 500]


def test_named_rows_are_marked_also_where_nothing_else_was_done_for_their_tenant(kit, fleet, neighbours):
    mine, other = neighbours
    key = add(kit, mine, Entry(text="first"))
    assert (kit.cache.get(Entry, key, tenant=mine)).text == "first"
    route = kit.locate(mine)
    with fleet.admin(route.server) as psql:
        psql.execute(f"UPDATE {route.schema}.entries SET text = 'by hand' WHERE id = %s", (key,))
    with kit.transaction(mine, other) as tx:
        kit.cache.invalidate(Entry, key, session=tx.session(mine))
    assert (kit.cache.get(Entry, key, tenant=mine)).text == "by hand"


def test_text_below_another_write_is_stopped(kit, tenant):
    key = add_photo(kit, tenant)
    below = text("UPDATE entries SET text = 'raw' RETURNING id").columns(Entry.id).cte("below")
    with pytest.raises(UnknownKeysError, match="entries"):
        with kit.begin(tenant) as s:
            s.execute(update(Photo).where(Photo.id == key).values(title="second").add_cte(below))
