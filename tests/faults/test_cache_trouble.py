"""Redis frozen, gone, read-only, a cluster: readers get the truth from PostgreSQL, writers do what the settings say."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError

import pytest
from cachelab import Photo, cached_fleet_on
from redislab import RedisServer, Relay

from shardkit import AsyncShardKit, ShardKit
from shardkit._sync import cache, filling
from shardkit._sync.nodes import UnreachableError
from shardkit.errors import CacheUnavailableError, SettingsError
from shardkit.local.ports import free_ports

TENANT = "acme"


@pytest.fixture(scope="module")
def fleet(local_cluster):
    with cached_fleet_on(local_cluster) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def server():
    with RedisServer() as server:
        yield server


@pytest.fixture
def open_kit(fleet, server):
    with contextlib.ExitStack() as opened:
        usual = {"redis_url": server.url, "cache_timeout_s": 30.0}  # a machine that stalls is not what is tried here
        yield lambda **given: opened.enter_context(ShardKit(settings=fleet.settings(**(usual | given))))


def add(kit, slug):
    with kit.begin(TENANT) as s:
        photo = Photo(user_id=1, slug=slug, title="first")
        s.add(photo)
        s.flush()
        return photo.id


def retitle(kit, key, title):
    with kit.begin(TENANT) as s:
        s.get(Photo, key).title = title


def title_of(kit, key):
    return kit.cache.get_row(Photo, key, tenant=TENANT).title


@pytest.fixture
def slow_fills(monkeypatch):
    """Who fills, and who waits for that, has all the time it needs, also where the machine stalls."""
    monkeypatch.setattr(filling, "JOIN_S", 60.0)
    monkeypatch.setattr(filling, "LEASE_MS", 60_000)
    monkeypatch.setattr(cache, "SCRIPT_WAIT_S", 60.0)


@contextlib.contextmanager
def frozen(server, kit):
    """The server is stopped, and *kit*, patient otherwise, waits a twentieth of a second for it, as by the default setting."""
    store = kit.cache._store
    links = [link for node in store._topology.nodes() for link in node._idle]
    patience_s, store._timeout_s = store._timeout_s, 0.05
    assert links, "whoever makes a connection first waits as long as the setting says"
    for link in links:
        link.connection._sock.settimeout(0.05)
    server.freeze()
    try:
        yield
    finally:
        store._timeout_s = patience_s
        for link in links:  # if they are still there: what was asked in vain is closed
            if link.connection._sock is not None:
                link.connection._sock.settimeout(patience_s)
        server.thaw()


def test_frozen_redis_is_asked_once(open_kit, server, eventually):
    kit = open_kit()
    key = add(kit, "frozen")
    assert title_of(kit, key) == "first"
    with frozen(server, kit):
        assert [title_of(kit, key) for _ in range(20)] == ["first"] * 20
        assert kit.cache._store.open
    eventually(lambda: not kit.cache._store.open)
    assert title_of(kit, key) == "first"


def test_strict_writer_fails_and_nothing_is_written(open_kit, server, eventually):
    kit = open_kit(cache_on_down="strict")
    key = add(kit, "strict")
    assert title_of(kit, key) == "first"
    with frozen(server, kit), pytest.raises(CacheUnavailableError) as caught:
        retitle(kit, key, "second")
    assert caught.value.retryable
    eventually(lambda: not kit.cache._store.open)
    assert title_of(kit, key) == "first"
    retitle(kit, key, "second")
    assert title_of(kit, key) == "second"


def test_outbox_is_drained_when_redis_is_back(open_kit, server, eventually):
    writer, reader = open_kit(), open_kit()
    key = add(writer, "outbox")
    assert title_of(reader, key) == "first"
    with frozen(server, writer):
        retitle(writer, key, "second")
        assert writer.cache.counts.outbox == 1
    eventually(lambda: title_of(reader, key) == "second")
    eventually(lambda: not writer.cache.writer.debts)
    assert writer.cache.drain() == 0


def test_outbox_row_that_was_left_while_redis_answers_others_is_drained_too(open_kit, server, eventually, monkeypatch):
    writer = open_kit()
    key = add(writer, "busy")
    assert title_of(writer, key) == "first"
    with monkeypatch.context() as patched:

        def busy(*_given, **_named):
            raise UnreachableError

        patched.setattr(writer.cache._store, "mark", busy)
        retitle(writer, key, "second")
        assert writer.cache.counts.outbox == 1
    assert not writer.cache._store.open
    eventually(lambda: not writer.cache.writer.debts)
    assert title_of(writer, key) == "second"
    assert writer.cache.drain() == 0


def test_outbox_of_a_dead_writer_is_drained_by_anybody(open_kit, server, eventually):
    writer, reader = open_kit(), open_kit()
    key = add(writer, "dead")
    assert title_of(reader, key) == "first"
    writer.cache._recovered = writer.cache._store._recovered = lambda: None
    with frozen(server, writer):
        retitle(writer, key, "second")
    assert reader.cache.drain() >= 1
    assert title_of(reader, key) == "second"


def test_ttl_writer_goes_on(open_kit, server):
    kit = open_kit(cache_on_down="ttl")
    key = add(kit, "ttl")
    with frozen(server, kit):
        retitle(kit, key, "second")
        assert title_of(kit, key) == "second"
    assert kit.cache.counts.outbox == 0


def test_redis_that_is_not_there_is_no_error(open_kit):
    kit = open_kit(redis_url=f"redis://127.0.0.1:{free_ports(1)[0]}/0")
    key = add(kit, "absent")
    assert [title_of(kit, key) for _ in range(10)] == ["first"] * 10
    assert kit.cache._store.open


def test_idle_connections_closed_by_the_server_are_no_error(open_kit, server):
    kit = open_kit(cache_on_down="strict")
    key = add(kit, "reaped")
    title_of(kit, key)
    server.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    hits = kit.cache.counts.hits
    assert title_of(kit, key) == "first"
    assert kit.cache.counts.hits == hits + 1
    server.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    retitle(kit, key, "second")
    assert title_of(kit, key) == "second"


def test_promoted_replica_starts_cold(open_kit, server, eventually):
    with RedisServer() as replica:
        replica.ask("REPLICAOF", "127.0.0.1", server.port)
        eventually(lambda: replica.ask("INFO", "replication")["master_link_status"] == "up")
        relay = Relay(server.port)
        kit = open_kit(redis_url=relay.url)
        key = add(kit, "promoted")
        assert title_of(kit, key) == "first"
        written = server.ask("INFO", "replication")["master_repl_offset"]
        eventually(lambda: replica.ask("INFO", "replication")["slave_repl_offset"] >= written)  # it has the key
        replica.ask("REPLICAOF", "NO", "ONE")
        relay.point(replica.port)
        loads = kit.cache.counts.loads
        assert title_of(kit, key) == "first"
        assert kit.cache.counts.loads == loads + 1
        relay.close()


def test_replica_is_not_taken_for_the_master(open_kit, server):
    with RedisServer() as replica:
        replica.ask("REPLICAOF", "127.0.0.1", server.port)
        kit = open_kit(redis_url=replica.url, cache_on_down="strict")
        with pytest.raises(CacheUnavailableError):
            add(kit, "replica")


def test_herd_loads_once(open_kit, slow_fills):
    kit = open_kit()
    title_of(kit, add(kit, "the first of a shard sets its barrier"))
    for number in range(5):
        key, loads = add(kit, f"herd {number}"), kit.cache.counts.loads
        gate = threading.Barrier(200)

        def ask(key=key, gate=gate):
            gate.wait()
            return title_of(kit, key)

        with ThreadPoolExecutor(200) as pool:
            assert {f.result() for f in [pool.submit(ask) for _ in range(200)]} == {"first"}
        assert kit.cache.counts.loads == loads + 1


def test_fill_that_stalls_makes_nobody_load_again(open_kit, slow_fills):
    kit = open_kit()
    key = add(kit, "stalled")
    loading, go_on, fill = threading.Event(), threading.Event(), kit.cache._filler.fill

    def stalls(*given):
        loading.set()
        assert go_on.wait(60)
        return fill(*given)

    kit.cache._filler.fill = stalls
    with ThreadPoolExecutor(20) as pool:
        first = pool.submit(title_of, kit, key)
        assert loading.wait(60)
        late = [pool.submit(title_of, kit, key) for _ in range(19)]
        with contextlib.suppress(FutureTimeoutError):
            late[0].result(0.2)  # four times as long as it would wait for another process
        go_on.set()
        assert {one.result() for one in [first, *late]} == {"first"}
    assert kit.cache.counts.loads == 1


def test_more_threads_than_connections_are_no_error(open_kit):
    kit = open_kit(cache_pool_size=4, pool_timeout_s=60.0, pool_queue=1000)  # a stall may send all of them to PostgreSQL
    keys = [add(kit, f"crowd {n}") for n in range(10)]
    with ThreadPoolExecutor(500) as pool:
        asked = [pool.submit(title_of, kit, keys[n % 10]) for n in range(1000)]
        assert {one.result() for one in asked} == {"first"}


def test_async_cancellation_breaks_no_connection(fleet, server):
    async def run():
        async with AsyncShardKit(settings=fleet.settings(redis_url=server.url)) as kit:
            async with kit.begin(TENANT) as s:
                photo = Photo(user_id=1, slug="cancelled", title="first")
                s.add(photo)
                await s.flush()
                key = photo.id
            for pause in (0, 0, 0.0001, 0.001):
                task = asyncio.create_task(kit.cache.get_row(Photo, key, tenant=TENANT))
                await asyncio.sleep(pause)
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
                assert (await kit.cache.get_row(Photo, key, tenant=TENANT)).title == "first"

    asyncio.run(run())


@pytest.fixture(scope="module")
def redis_cluster():
    with contextlib.ExitStack() as stack:
        buses = free_ports(3)  # the default is 10,000 above the other port, which may be none
        usual = ("--cluster-enabled", "yes", "--cluster-node-timeout", "30000", "--cluster-port")
        nodes = [stack.enter_context(RedisServer(*usual, str(bus))) for bus in buses]
        for number, node in enumerate(nodes):
            node.ask("CLUSTER", "ADDSLOTSRANGE", number * 16384 // 3, (number + 1) * 16384 // 3 - 1)
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            nodes[0].ask("CLUSTER", "MEET", "127.0.0.1", node.port, buses[number])
        yield nodes


def test_cluster_of_three_nodes(open_kit, redis_cluster, eventually):
    eventually(lambda: all(b"cluster_state:ok" in n.ask("CLUSTER", "INFO") for n in redis_cluster))
    kit = open_kit(redis_url=f"redis+cluster://127.0.0.1:{redis_cluster[0].port}", cache_on_down="strict")
    keys = {}
    for number in range(12):
        with kit.begin(f"t{number}") as s:
            photo = Photo(user_id=1, slug="x", title="first")
            s.add(photo)
            s.flush()
            keys[f"t{number}"] = photo.id
    for tenant, key in keys.items():
        assert kit.cache.get_row(Photo, key, tenant=tenant).title == "first"
        assert list(kit.cache.get_rows(Photo, [key, 5], tenant=tenant)) == [key]
        with kit.begin(tenant) as s:
            s.get(Photo, key).title = "second"
        assert kit.cache.get_row(Photo, key, tenant=tenant).title == "second"
    hits = kit.cache.counts.hits
    assert [kit.cache.get_row(Photo, k, tenant=t).title for t, k in keys.items()] == ["second"] * 12
    assert kit.cache.counts.hits == hits + 12
    assert sum(bool(node.ask("DBSIZE")) for node in redis_cluster) >= 2  # shards spread over nodes


def test_sentinel_says_who_the_master_is(open_kit, server, tmp_path):
    conf = tmp_path / "sentinel.conf"
    conf.write_text(f"sentinel monitor main 127.0.0.1 {server.port} 1\n")
    sentinel = RedisServer.__new__(RedisServer)
    with contextlib.closing(sentinel):
        sentinel.start_as(conf)
        kit = open_kit(redis_url=f"redis+sentinel://127.0.0.1:{sentinel.port}/main", cache_on_down="strict")
        key = add(kit, "sentinel")
        title_of(kit, key)
        hits = kit.cache.counts.hits
        assert title_of(kit, key) == "first"
        assert kit.cache.counts.hits == hits + 1


@pytest.mark.parametrize(
    "url",
    [
        "redis://10.0.0.1/0",
        "rediss://10.0.0.1/0?ssl_cert_reqs=none",
        "http://127.0.0.1",
        "redis+sentinel://127.0.0.1,10.0.0.1/x",
    ],
)
def test_unsafe_or_unknown_address_is_refused(fleet, url):
    with pytest.raises(SettingsError) as caught:
        fleet.settings(redis_url=url)
    assert "insecure_transport" in str(caught.value) or "redis_url" in str(caught.value)
