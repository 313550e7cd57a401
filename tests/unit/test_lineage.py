"""Only the highest timeline of a server is the living one."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest

from shardkit import Settings
from shardkit.core.shardmap import Server
from shardkit.db.connect import app_conninfo, parsed
from shardkit.db.lineage import Lineage, OldPrimaryError
from shardkit.db.living import hosts_apart
from shardkit.errors import Outcome, WrongServerError

SERVER = Server("pg1", "host=127.0.0.1", UUID(int=1))
SETTINGS = Settings(catalog_url="postgresql://app:secret@127.0.0.1/catalog")


def test_a_lower_timeline_than_one_that_was_seen_is_refused():
    lineage = Lineage()
    lineage.saw(SERVER, 1)
    lineage.saw(SERVER, 3)
    lineage.saw(SERVER, 3)
    with pytest.raises(OldPrimaryError, match="timeline 2") as caught:
        lineage.saw(SERVER, 2)
    assert isinstance(caught.value, WrongServerError)
    assert (caught.value.outcome, caught.value.retryable) == (Outcome.NOT_DONE, False)
    lineage.saw(replace(SERVER, server_id=UUID(int=2)), 1)  # another server's own business


def test_the_maps_timeline_counts_for_a_program_that_has_seen_nothing():
    with pytest.raises(OldPrimaryError):
        Lineage().saw(replace(SERVER, timeline=2), 1)


def test_a_rise_is_told_once_and_the_first_timeline_is_none():
    told = []
    lineage = Lineage(lambda server, timeline: told.append((server.name, timeline)))
    for timeline in (1, 1, 2, 2, 5):
        lineage.saw(SERVER, timeline)
    assert told == [("pg1", 2), ("pg1", 5)]


def test_a_dsn_of_several_hosts_asks_for_the_one_that_takes_writes():
    server = replace(SERVER, dsn="host=127.0.0.1,::1 port=5432,5433 dbname=x")
    info = app_conninfo(server, SETTINGS)
    assert parsed(info)["target_session_attrs"] == "read-write"
    assert parsed(info)["connect_timeout"] == "2"
    apart = [(p["host"], p["port"]) for p in map(parsed, hosts_apart(info))]
    assert apart == [("127.0.0.1", "5432"), ("::1", "5433")]
    assert "secret" not in repr(hosts_apart(info))


def test_what_a_dsn_says_itself_is_kept():
    server = replace(SERVER, dsn="host=127.0.0.1,::1 target_session_attrs=primary connect_timeout=7")
    assert parsed(app_conninfo(server, SETTINGS))["target_session_attrs"] == "primary"
    assert parsed(app_conninfo(server, SETTINGS))["connect_timeout"] == "7"


def test_a_replica_takes_the_servers_credentials_and_database():
    server = replace(SERVER, dsn="host=127.0.0.1 dbname=x")
    info = parsed(app_conninfo(server, SETTINGS, replica="host=::1 port=6000"))
    assert (info["host"], info["port"], info["dbname"], info["user"]) == ("::1", "6000", "x", "app")
