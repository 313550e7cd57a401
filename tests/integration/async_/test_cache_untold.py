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


async def add(kit, tenant, made):
    async with kit.begin(tenant) as s:
        s.add(made)
        await s.flush()
        return made.id


async def add_photo(kit, tenant, *, slug="a", user=1):
    return await add(kit, tenant, Photo(user_id=user, slug=slug, title="first"))


async def title_of(kit, tenant, key):
    found = await kit.cache.get(Photo, key, tenant=tenant)
    return found and found.title


async def test_markers_are_placed_before_a_commit_that_travels_with_an_insert(kit, tenant, monkeypatch):
    key = await add_photo(kit, tenant)
    assert await title_of(kit, tenant, key) == "first"
    place, idle = kit.cache.writer.place, []

    def noting(driver, names):
        idle.append(driver.idle)
        place(driver, names)

    monkeypatch.setattr(kit.cache.writer, "place", noting)
    async with kit.begin(tenant) as s:
        await s.execute(update(Photo).where(Photo.id == key).values(title="second"))
        s.add(Album(name="alone in its flush, and not cached"))
    assert idle == [False]
    assert await title_of(kit, tenant, key) == "second"


async def test_unknown_rows_stop_a_commit_that_would_travel_with_an_insert(kit, tenant):
    key = await add_photo(kit, tenant)
    with pytest.raises(UnknownKeysError, match="photos"):
        async with kit.begin(tenant) as s:
            await s.execute(text("UPDATE photos SET title = 'raw' WHERE id = :key"), {"key": key})
            s.add(Album(name="alone in its flush, and not cached"))
    async with kit.read(tenant) as s:
        assert (await s.get(Photo, key)).title == "first"


async def test_what_a_listener_writes_before_commit_is_marked(kit, tenant):
    key = await add_photo(kit, tenant)
    assert await title_of(kit, tenant, key) == "first"
    async with kit.session(tenant) as s:
        inner = inner_of(s)
        await s.connection()

        @event.listens_for(inner, "before_commit")
        def count(session):
            session.execute(update(Photo).where(Photo.id == key).values(title="second"))

        await s.commit()
    assert await title_of(kit, tenant, key) == "second"


async def test_raw_sql_of_a_listener_stops_the_commit(kit, tenant):
    key = await add_photo(kit, tenant)
    async with kit.session(tenant) as s:
        inner = inner_of(s)
        await s.connection()

        @event.listens_for(inner, "before_commit")
        def count(session):
            session.execute(text("UPDATE photos SET title = 'raw' WHERE id = :key"), {"key": key})

        with pytest.raises(UnknownKeysError, match="photos"):
            await s.commit()


async def test_keys_of_a_row_that_was_replaced_are_marked(kit, tenant):
    """DELETE and INSERT of one primary key are one UPDATE to SQLAlchemy."""
    key = await add_photo(kit, tenant)
    assert (await kit.cache.get(Photo, "a", by="slug", tenant=tenant)).id == key
    assert [p.id for p in await kit.cache.list(Photo, 1, by="user_id", tenant=tenant)] == [key]
    async with kit.begin(tenant) as s:
        await s.delete(await s.get(Photo, key))
        s.add(Photo(id=key, user_id=2, slug="b", title="second"))
    assert await title_of(kit, tenant, key) == "second"
    assert await kit.cache.get(Photo, "a", by="slug", tenant=tenant) is None
    assert await kit.cache.list(Photo, 1, by="user_id", tenant=tenant) == []
    assert (await kit.cache.get(Photo, "b", by="slug", tenant=tenant)).title == "second"


async def test_list_by_a_column_that_every_update_sets(kit, tenant):
    keys = [await add(kit, tenant, Page(book_id=1, text="first")) for _ in range(2)]
    assert [p.id for p in await kit.cache.list(Page, 1, by="book_id", tenant=tenant)] == keys[::-1]
    async with kit.begin(tenant) as s:
        (await s.get(Page, keys[0])).text = "second"
    assert [p.id for p in await kit.cache.list(Page, 1, by="book_id", tenant=tenant)] == keys


async def test_old_value_of_a_computed_key_is_marked(kit, tenant):
    key = await add(kit, tenant, Account(email="Ann@example.com"))
    assert (await kit.cache.get(Account, "ann@example.com", by="address", tenant=tenant)).id == key
    async with kit.begin(tenant) as s:
        (await s.get(Account, key)).email = "Bob@example.com"
    assert await kit.cache.get(Account, "ann@example.com", by="address", tenant=tenant) is None
    assert (await kit.cache.get(Account, "bob@example.com", by="address", tenant=tenant)).id == key
    with pytest.raises(UnknownKeysError, match="accounts"):
        async with kit.begin(tenant) as s:
            await s.execute(update(Account).where(Account.id == key).values(email="Cid@example.com"))


async def in_capitals(s, key):
    await s.execute(text("UPDATE Photos SET title = 'raw' WHERE id = :key"), {"key": key})


async def below_another_write(s, key):
    changed = update(Photo).where(Photo.id == key).values(title="raw").returning(Photo.user_id).cte("changed")
    source = select(func.cast(changed.c.user_id, Photo.user_id.type), func.now()).add_cte(changed)
    await s.execute(insert(Page).from_select(["book_id", "changed_at"], source))


async def as_ddl(s, key):
    await s.execute(DDL(f"UPDATE photos SET title = 'raw' WHERE id = {key}"))


@pytest.mark.parametrize("write", [in_capitals, below_another_write, as_ddl], ids=lambda f: f.__name__)
async def test_write_that_does_not_tell_its_rows_is_stopped(kit, tenant, write):
    key = await add_photo(kit, tenant)
    with pytest.raises(UnknownKeysError, match="photos"):
        async with kit.begin(tenant) as s:
            await write(s, key)


async def test_deleting_a_row_that_points_to_itself(kit, tenant):
    async with kit.begin(tenant) as s:
        top = Entry(text="top")
        s.add(top)
        await s.flush()
        top.top_id = top.id
        below = Entry(text="below", top_id=top.id)
        s.add(below)
        await s.flush()
        keys = top.id, below.id
    assert list(await kit.cache.get_many(Entry, keys, tenant=tenant)) == list(keys)
    async with kit.begin(tenant) as s:
        await s.delete(await s.get(Entry, keys[0]))
    assert await kit.cache.get_many(Entry, keys, tenant=tenant) == {}
