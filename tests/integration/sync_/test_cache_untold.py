# Generated from tests/integration/async_/test_cache_untold.py by tests/generate_sync.py: change that file instead.
"""Writes to cached tables in less usual ways: each is marked before COMMIT, or stopped."""

from __future__ import annotations

import pytest
from cachelab import Account, Album, Entry, Page, Photo, cached_fleet_on
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
