"""The Lua scripts decide as the pure protocol does, on a real server."""

from __future__ import annotations

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardkit.core import cacheproto as proto
from shardkit.core import cachescripts
from shardkit.core.cacheproto import Found

xids = st.integers(1, 2**50)
markers = st.builds(
    lambda token, epoch, xs: proto.pack_marker(proto.Marker(token, 10**15 if token else 0, epoch, xs)),
    st.sampled_from([b"", b"tok"]),
    st.integers(1, 3),
    st.lists(xids, max_size=8, unique=True).map(lambda xs: b",".join(b"%d" % x for x in xs)) | xids.map(lambda x: b"^%d" % x),
)
TERM, OTHER = b"@\0\xff%term", b"@another."
terms = st.sampled_from([TERM, OTHER, b""])
values = st.none() | markers | st.builds(bytes.__add__, st.sampled_from([b"N", b"V\x01row", b"anything"]), terms)
barriers = st.none() | st.builds(bytes.__add__, st.sampled_from([b"B|1|5", b"B|2|5", b"B|3|7"]), terms) | st.just(b"P|x")


@pytest.fixture(scope="module")
def client(local_cluster):
    with redis.Redis.from_url(local_cluster.redis_url) as client:
        yield client


def put(client, key, value):
    client.delete(key)
    if value is not None:
        client.set(key, value)


usual = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@usual
@given(values, xids, st.integers(1, 3))
def test_mark_is_the_pure_mark(client, value, xid, epoch):
    put(client, "k", value)
    client.eval(cachescripts.MARK, 1, "k", xid, epoch, 5000)
    assert client.get("k") == proto.mark(value, xid=xid, epoch=epoch)
    assert 0 < client.pttl("k") <= 5000


@usual
@given(values, barriers, st.integers(1, 3), st.booleans())
def test_lease_is_the_pure_lease(client, value, barrier, epoch, replace):
    put(client, "b", barrier)
    put(client, "k", value)
    outdated = value if replace and value and value[:1] == b"V" else b""
    reply = client.eval(cachescripts.LEASE, 2, "b", "k", "me", epoch, 1000, 500, TERM, outdated)
    found, left = proto.lease(
        value, barrier=barrier, token=b"me", epoch=epoch, term=TERM, now_ms=10**13, lease_ms=1000, outdated=outdated
    )
    if reply[0][:1] != b"B":
        assert Found(reply[0]) is found
        if found is Found.NO_BARRIER:
            assert client.get("b") == left
        return
    if found is Found.LEASE:
        got, wanted = proto.parse_marker(reply[1][1:]), proto.parse_marker(left)
        assert got._replace(deadline_ms=0) == wanted._replace(deadline_ms=0)
        assert client.get("k") == reply[1][1:]
    else:
        assert Found(reply[1][:1]) is found
        assert client.get("k") == value


def test_swap_only_replaces_what_was_seen(client):
    put(client, "k", b"old")
    assert client.eval(cachescripts.SWAP, 1, "k", "other", "new", 100) == [0]
    assert client.eval(cachescripts.SWAP, 1, "k", "old", "new", 0) == [1]
    assert (client.get("k"), client.pttl("k")) == (b"new", -1)
    assert client.eval(cachescripts.SWAP, 1, "k", "new", "", 0) == [1]
    assert client.get("k") is None


def test_keys_of_another_type_are_overwritten(client):
    client.delete("k", "b")
    client.rpush("k", "x")
    client.rpush("b", "x")
    assert client.eval(cachescripts.MARK, 1, "k", 7, 1, 5000) == 1
    assert client.get("k") == b"M||0|1|7"
    assert client.eval(cachescripts.LEASE, 2, "b", "k", "me", 1, 1000, 500, TERM, "") == [b"P"]
