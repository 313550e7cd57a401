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


async def test_on_update_cascade_has_to_be_named(kit, tenant):
    code = await add(kit, tenant, Genre(code="pop"))
    key = await add(kit, tenant, Song(genre="pop"))
    assert (await kit.cache.get(Song, key, tenant=tenant)).genre == "pop"
    with pytest.raises(UnknownKeysError, match="songs"):
        async with kit.begin(tenant) as s:
            (await s.get(Genre, code)).code = "rock"
    with pytest.raises(UnknownKeysError, match="songs"):
        async with kit.begin(tenant) as s:
            await s.execute(update(Genre).where(Genre.id == code).values(code="rock"))
    async with kit.begin(tenant) as s:
        (await s.get(Genre, code)).code = "rock"
        await s.flush()
        await kit.cache.invalidate(Song, key, session=s)
    assert (await kit.cache.get(Song, key, tenant=tenant)).genre == "rock"


async def test_cascades_below_the_table_of_a_base_class_are_marked(kit, tenant):
    opera = await add(kit, tenant, Opera())
    key = await add(kit, tenant, Review(work_id=opera))
    assert (await kit.cache.get(Review, key, tenant=tenant)).work_id == opera
    async with kit.begin(tenant) as s:
        await s.delete(await s.get(Opera, opera))
    assert await kit.cache.get(Review, key, tenant=tenant) is None


async def test_lists_of_keys_with_an_enum_in_them(kit, tenant):
    async with kit.begin(tenant) as s:
        s.add_all([Vote(item=1, kind=Kind.DOWN, title="no"), Vote(item=1, kind=Kind.UP, title="yes")])
    for _ in ("loaded", "stored"):
        found = await kit.cache.list(Vote, 1, by="item", tenant=tenant)
        assert {(vote.kind, vote.title) for vote in found} == {(Kind.UP, "yes"), (Kind.DOWN, "no")}
    assert kit.cache.stats().corrupt == 0


async def test_row_that_left_a_list_while_it_was_read(kit, tenant):
    keys = [await add_photo(kit, tenant, slug=slug) for slug in ("a", "b")]
    rows = kit.cache._rows

    async def left_meanwhile(*given):
        async with kit.begin(tenant) as s:
            (await s.get(Photo, keys[0])).user_id = 2
        return await rows(*given)

    kit.cache._rows = left_meanwhile
    assert [p.id for p in await kit.cache.list(Photo, 1, by="user_id", tenant=tenant)] == keys[1:]


async def test_unique_key_that_the_session_has_not_flushed_yet(kit, tenant):
    await add_photo(kit, tenant)
    assert await kit.cache.get(Photo, "b", by="slug", tenant=tenant) is None
    async with kit.session(tenant) as s:
        (await kit.cache.get(Photo, "a", by="slug", session=s)).slug = "b"
        assert (await kit.cache.get(Photo, "b", by="slug", session=s)).title == "first"
        assert await kit.cache.get(Photo, "a", by="slug", session=s) is None


async def test_forgetting_a_tenant_leaves_its_neighbours_markers(kit, neighbours, raw_redis):
    mine, other = neighbours
    key = await add_photo(kit, mine)
    await title_of(kit, mine, key)
    (stored,) = raw_redis.keys(f"*photos::{mine}:{key}")
    theirs = stored.decode().partition(":photos")[0] + f":likes:of,by:{other}:{mine}:7"
    raw_redis.set(theirs, b"M||0|1|99")
    assert await kit.cache.forget(mine, shard=kit.locate(mine).shard) > 0
    assert raw_redis.get(stored) is None
    assert raw_redis.get(theirs) == b"M||0|1|99"


async def test_outbox_of_many_transactions_is_drained_whole(kit, tenant):
    await kit.cache.drain()
    async with kit.shard(kit.locate(tenant).shard).begin() as s:
        await s.execute(
            text("INSERT INTO shardkit_cache_outbox (xid, names) SELECT 1, ARRAY['x' || n] FROM generate_series(1, 1001) n")
        )
    assert await kit.cache.drain() == 1001
    assert await kit.cache.undrained() == 0


async def test_many_keys_are_marked_some_at_a_time(kit, tenant, monkeypatch):
    asked, script = [], kit.cache._store._script

    async def noting(source, tag, names, arguments):
        asked.append(len(names))
        return await script(source, tag, names, arguments)

    monkeypatch.setattr(kit.cache._store, "_script", noting)
    await kit.cache._store.mark("none", [f"k{n}" for n in range(2500)], xid=1, epoch=1, ttl_ms=1000)
    assert asked == [1000, 1000, 500]


async def test_named_rows_are_marked_also_where_nothing_else_was_done_for_their_tenant(kit, fleet, neighbours):
    mine, other = neighbours
    key = await add(kit, mine, Entry(text="first"))
    assert (await kit.cache.get(Entry, key, tenant=mine)).text == "first"
    route = kit.locate(mine)
    with fleet.admin(route.server) as psql:
        psql.execute(f"UPDATE {route.schema}.entries SET text = 'by hand' WHERE id = %s", (key,))
    async with kit.transaction(mine, other) as tx:
        await kit.cache.invalidate(Entry, key, session=tx.session(mine))
    assert (await kit.cache.get(Entry, key, tenant=mine)).text == "by hand"


async def test_text_below_another_write_is_stopped(kit, tenant):
    key = await add_photo(kit, tenant)
    below = text("UPDATE entries SET text = 'raw' RETURNING id").columns(Entry.id).cte("below")
    with pytest.raises(UnknownKeysError, match="entries"):
        async with kit.begin(tenant) as s:
            await s.execute(update(Photo).where(Photo.id == key).values(title="second").add_cte(below))
