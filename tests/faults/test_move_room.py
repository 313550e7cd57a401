"""A move without room, or from a source with too much to do: it says so, waits or undoes itself, and leaves nothing."""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess

import psycopg
import pytest
from locallab import at_work
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict

from shardkit.core import moving as m
from shardkit.core.easing import Limits
from shardkit.core.lag import lsn_number
from shardkit.core.names import schema_name
from shardkit.errors import MoveError, WalLimitError
from shardkit.move import easing, work
from shardkit.move.copy import slot_with_snapshot
from shardkit.move.ends import SQL, End
from shardkit.move.options import MoveOptions
from tests.faults.lab import Load
from tests.faults.movelab import Lab


@pytest.fixture(scope="module")
def lab(local_cluster):
    with Lab.on_cluster(local_cluster) as lab:
        yield lab


@contextlib.contextmanager
def small_disk(local_cluster, lab, server, megabytes):
    """Tables on *server* are made on a disk of so many megabytes."""
    port = int(conninfo_to_dict(lab.servers[server])["port"])
    name = next(one.name for one in local_cluster.servers if one.port == port)
    place = local_cluster.data_dir / f"small-{name}"
    owner = (local_cluster.data_dir / "servers" / name).stat().st_uid
    place.mkdir()
    options = f"size={megabytes}m,uid={owner},mode=0700"
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=False, capture_output=True, text=True
    )
    if mount.returncode:
        pytest.skip(f"cannot mount here: {mount.stderr.strip()}")
    try:
        with lab.on(server) as connection:
            database = connection.info.dbname
            connection.execute(f"CREATE TABLESPACE small LOCATION '{place}'")
            connection.execute(f'ALTER DATABASE "{database}" SET default_tablespace = small')
        yield place
        with lab.on(server) as connection:
            connection.execute(f'ALTER DATABASE "{database}" RESET default_tablespace')
            connection.execute("DROP TABLESPACE small")
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_the_targets_disk_full_in_the_middle_of_the_copy(lab, local_cluster):
    lab.move()  # what moves need for themselves on a server stays there; it is not to be on the small disk
    schema = schema_name(0, lab.place.epoch)
    with lab.on(lab.place.server) as source:
        source.execute(f"CREATE TABLE {schema}.bulk (id int PRIMARY KEY, filler text)")
        source.execute(f"INSERT INTO {schema}.bulk SELECT n, repeat('x', 1000) FROM generate_series(1, 20000) n")
    with small_disk(local_cluster, lab, lab.other, 8), Load(lab) as load:
        move = lab.begin(soak=False)
        with pytest.raises(MoveError, match=r"no room left.*the source goes on serving"):
            lab.go_on(move)
        load.wait_for(5)
        assert "no room left" in lab.find(move).problem
        assert lab.go_on(move, "abort").step is m.Step.ABORTED
        assert lab.complaints() == []
    assert lab.complaints(load) == []
    assert lab.move().step is m.Step.FINISHED  # with room it goes
    assert lab.rows("SELECT count(*) FROM bulk") == [(20000,)]
    with lab.on(lab.place.server) as source:
        source.execute(f"DROP TABLE {schema_name(0, lab.place.epoch)}.bulk")


def test_a_move_that_holds_back_too_much_wal_undoes_itself(lab):
    place, move = lab.place, lab.begin()
    with Load(lab) as load:
        with pytest.raises(WalLimitError, match=rf"of WAL on server '{place.server}'.*It was undone"):
            lab.go_on(move, options=MoveOptions(wal_limit=1))
        load.wait_for(5)
    assert lab.find(move).step is m.Step.ABORTED
    assert lab.place == place
    assert lab.complaints(load) == []


def test_a_rollback_that_holds_back_too_much_wal_leaves_the_follower(lab, monkeypatch):
    monkeypatch.setattr(work, "WAL_EVERY_S", -1.0)
    move = lab.go_on(lab.begin())
    back = lab.begin_rollback(move)
    with pytest.raises(WalLimitError):
        lab.go_on(back, options=MoveOptions(wal_limit=1))
    assert lab.go_on(back).step is m.Step.FINISHED
    assert lab.complaints() == []


class Receiver:
    """A standby as the source sees it: streams its log, and has replayed what it says it has."""

    def __init__(self, url):
        self.connection = psycopg.connect(url, replication="true", application_name="far away", autocommit=True)
        wire = self.connection.pgconn
        self.began = wire.exec_(b"IDENTIFY_SYSTEM").get_value(0, 2).decode()
        assert wire.exec_(f"START_REPLICATION PHYSICAL {self.began}".encode()).status == pq.ExecStatus.COPY_BOTH
        self.say(self.began)

    def say(self, lsn):
        number = lsn_number(lsn)
        self.connection.pgconn.put_copy_data(b"r" + struct.pack(">QQQQB", number, number, number, 0, 0))
        self.connection.pgconn.flush()


def heard_pauses(lab, move, limits, release):
    """Reasons for which *move* paused; from the third on, *release* is called."""
    heard = []

    def report(news):
        if news.note.startswith("paused"):
            heard.append(news.note)
            if len(heard) >= 3:
                release()

    ended = lab.go_on(move, options=MoveOptions(limits=limits), report=report)
    assert ended.step is m.Step.FINISHED
    assert ended.facts["paused_s"] > 0
    return heard


def test_the_copy_waits_for_a_standby_that_is_behind(lab, monkeypatch):
    monkeypatch.setattr(easing, "LOOK_EVERY_S", 0.01)
    url = lab.servers[lab.place.server]
    standby = Receiver(url)
    with lab.on(lab.place.server) as source:
        source.execute("SELECT pg_logical_emit_message(true, 'x', 'something that the standby has not replayed')")

        def catch_up():
            standby.say("FFFFFFF/0")

        heard = heard_pauses(lab, lab.begin(soak=False), Limits(lag_s=0.001), catch_up)
    standby.connection.close()
    assert all("standby far away is" in note for note in heard)


def test_the_session_that_holds_the_copys_snapshot_is_no_standby(lab, eventually):
    """It has replayed nothing and never will: a copy that waited for it would wait for ever."""
    name = lab.place.server
    with lab.on(name) as connection:  # another test's standby may not have gone yet
        eventually(lambda: not connection.execute(SQL["standbys"]).fetchall())
    standby, source = Receiver(lab.servers[name]), End(name, lab.servers[name], lab.settings, session="a move")
    with lab.on(name) as connection:
        with slot_with_snapshot(source, "held_for_a_test", timeout_s=30):
            assert [who for who, _ in connection.execute(SQL["standbys"])] == ["far away"]
        connection.execute(SQL["drop_slot"], {"name": "held_for_a_test"})
    standby.connection.close()


def test_the_copy_waits_while_the_source_has_much_to_do(lab, monkeypatch):
    monkeypatch.setattr(easing, "LOOK_EVERY_S", 0.01)
    with lab.on(lab.place.server) as busy, at_work(busy):
        heard = heard_pauses(lab, lab.begin(soak=False), Limits(active=0), busy.cancel_safe)
    assert "1 other sessions are at work on the source (limit 0)" in heard[0]
