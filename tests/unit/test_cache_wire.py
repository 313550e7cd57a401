"""Hits are asked for in the very bytes that a client would send."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from redis._parsers import Encoder
from redis.connection import PythonRespSerializer

from shardkit.core.cachewire import packed_get, packed_mget

CLIENT = PythonRespSerializer(2**20, Encoder("utf-8", "strict", decode_responses=False).encode)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


def packed_by_the_client(*arguments):
    return b"".join(CLIENT.pack(*arguments))


@given(TEXTS)
def test_get(key):
    assert packed_get(key) == packed_by_the_client("GET", key)


@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=20))
def test_mget(before, names):
    assert packed_mget(before, names) == packed_by_the_client("MGET", *(before + name for name in names))


@given(st.lists(st.integers(10**17, 10**18 - 1), min_size=1, max_size=100))
def test_ids_of_one_length(ids):
    names = [f"photos::acme:{one}" for one in ids]
    assert packed_mget("sk:{c.7}:", names) == packed_by_the_client("MGET", *(f"sk:{{c.7}}:{name}" for name in names))
