"""TLS and passwords in front of Redis: who is not the server, or is not let in, costs speed and never a right answer."""

from __future__ import annotations

import asyncio
import contextlib
from uuid import uuid4

import pytest
from cachelab import Photo, cached_fleet_on
from redislab import RedisServer
from tlslab import Authority, Terminator

from shardkit import AsyncShardKit, ShardKit
from shardkit.errors import CacheUnavailableError

TENANT, PASSWORD = "acme", "a:b@c/d%"
QUOTED = "a%3Ab%40c%2Fd%25"


@pytest.fixture(scope="module")
def fleet(local_cluster):
    with cached_fleet_on(local_cluster) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def server():
    with RedisServer("--requirepass", PASSWORD, password=PASSWORD) as server:
        server.ask("ACL", "SETUSER", "app", "on", f">{PASSWORD}", "~sk:*", "+@all")
        yield server


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def terminator(server, authority):
    with contextlib.closing(Terminator(server.port, authority.issue("IP:127.0.0.1"))) as terminator:
        yield terminator


@pytest.fixture
def open_kit(fleet):
    with contextlib.ExitStack() as opened:
        yield lambda url: opened.enter_context(
            ShardKit(settings=fleet.settings(redis_url=url, cache_on_down="strict", cache_timeout_s=60.0))
        )


@pytest.fixture
def key(fleet):
    with ShardKit(settings=fleet.settings(redis_url=None)) as kit, kit.begin(TENANT) as s:
        photo = Photo(user_id=1, slug=f"tls-{uuid4()}", title="first")
        s.add(photo)
        s.flush()
        return photo.id


def caches(kit, key):
    """Whether the second read is a hit; both are right."""
    titles = [kit.cache.get_row(Photo, key, tenant=TENANT).title for _ in range(2)]
    assert titles == ["first"] * 2
    return kit.cache.stats().hits == 1


def retitle(kit, key, title):
    with kit.begin(TENANT) as s:
        s.get(Photo, key).title = title


def test_certificate_and_password_are_taken(open_kit, terminator, authority, key):
    before = terminator.carried
    kit = open_kit(f"rediss://:{QUOTED}@127.0.0.1:{terminator.port}/0?ssl_ca_certs={authority.certificate}")
    assert caches(kit, key)
    assert terminator.carried > before
    retitle(kit, key, "second")
    assert kit.cache.get_row(Photo, key, tenant=TENANT).title == "second"


def test_async_takes_them_too(fleet, terminator, authority, key):
    url = f"rediss://app:{QUOTED}@127.0.0.1:{terminator.port}/0?ssl_ca_certs={authority.certificate}"

    async def run():
        async with AsyncShardKit(settings=fleet.settings(redis_url=url, cache_timeout_s=60.0)) as kit:
            for _ in range(2):
                assert (await kit.cache.get_row(Photo, key, tenant=TENANT)).title == "first"
            return kit.cache.stats().hits

    assert asyncio.run(run()) >= 1


def test_certificate_of_an_unknown_authority_is_refused(open_kit, terminator, tmp_path, key):
    other = Authority(tmp_path, "other")
    kit = open_kit(f"rediss://:{QUOTED}@127.0.0.1:{terminator.port}/0?ssl_ca_certs={other.certificate}")
    assert not caches(kit, key)
    assert terminator.carried == 0  # not even the password
    with pytest.raises(CacheUnavailableError):
        retitle(kit, key, "second")


def test_certificate_of_another_host_is_refused(open_kit, server, authority, key):
    with contextlib.closing(Terminator(server.port, authority.issue("DNS:elsewhere.example"))) as terminator:
        kit = open_kit(f"rediss://:{QUOTED}@127.0.0.1:{terminator.port}/0?ssl_ca_certs={authority.certificate}")
        assert not caches(kit, key)
        assert terminator.carried == 0


def test_plain_connection_to_a_tls_port_is_no_answer(open_kit, terminator, key):
    assert not caches(open_kit(f"redis://127.0.0.1:{terminator.port}/0"), key)


@pytest.mark.parametrize("who", ["", ":wrong@", "nobody:wrong@"])
def test_wrong_password_is_no_answer(open_kit, server, key, who):
    kit = open_kit(f"redis://{who}127.0.0.1:{server.port}/0")
    assert not caches(kit, key)
    with pytest.raises(CacheUnavailableError) as caught:
        retitle(kit, key, "second")
    assert "wrong" not in str(caught.value)


def test_sentinel_leads_to_a_master_with_a_password(open_kit, server, tmp_path, key):
    conf = tmp_path / "sentinel.conf"
    conf.write_text(f"sentinel monitor main 127.0.0.1 {server.port} 1\nsentinel auth-pass main {PASSWORD}\n")
    sentinel = RedisServer.__new__(RedisServer)
    with contextlib.closing(sentinel):
        sentinel.start_as(conf)
        assert caches(open_kit(f"redis+sentinel://:{QUOTED}@127.0.0.1:{sentinel.port}/main"), key)
        assert not caches(open_kit(f"redis+sentinel://127.0.0.1:{sentinel.port}/main"), key)
