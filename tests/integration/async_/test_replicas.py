"""A replica serves a read only if it shows enough; whatever is wrong with it or with a token, nobody reads a wrong row."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass
from uuid import uuid4

import pytest
from fleet import Fleet, Order, fleet_on
from sqlalchemy import exc, func, select, text
from sqlalchemy.engine import make_url
from standby import Standby, make_standby

from shardkit.catalog.changes import set_replicas
from shardkit.core.lag import Position
from shardkit.core.token import Token, seal, token_key
from shardkit.db import replicas
from shardkit.errors import ReadOnlyError, SessionError, TokenError
from shardkit.local import run_local

FAR_S = 3600.0


@dataclass(frozen=True)
class ReplicatedFleet(Fleet):
    standby: Standby | None = None


@pytest.fixture(scope="module")
def fleet():
    """The second server has a replica."""
    quiet = {"autovacuum": "off"}  # a commit of its own that a slow replica has not applied is one more that it lacks
    with run_local(servers=2, redis=False, trust=True, fast=True, settings=quiet) as cluster, fleet_on(cluster) as fleet:
        standby = make_standby(cluster, of="pg2", name="pg2b")
        with fleet.admin() as catalog:
            set_replicas(catalog, "pg2", [standby.url_of(make_url(fleet.servers["pg2"]).database)])
        yield ReplicatedFleet(fleet.catalog_url, fleet.servers, fleet.map, standby)


@pytest.fixture
def tenant(fleet, tenant):
    """A tenant of the server that has a replica."""
    return next(t for t in (f"{tenant}-{n}" for n in range(1000)) if fleet.map.locate(t).server == "pg2")


@pytest.fixture
def slow(fleet, eventually):
    """The replica applies nothing new for an hour, inside the test."""
    eventually(lambda: fleet.standby.caught_up_with(fleet.servers["pg2"]))
    fleet.standby.apply_after("1h")
    yield
    fleet.standby.apply_after("0")


@pytest.fixture
def kit(open_kit):
    return open_kit(replica_check_s=0.05, replica_max_lag_s=FAR_S)


async def write(kit, tenant, note):
    async with kit.begin(tenant) as s:
        s.add(Order(note=note))


async def read(kit, tenant, **given):
    """Notes, and whether a replica gave them."""
    async with kit.read(tenant, **{"replica": True, **given}) as s:
        notes = sorted(await s.scalars(select(Order.note)))
        return notes, s.on_replica


async def read_until(kit, tenant, wanted, *, within_s=60.0, **given):
    """The first notes for which *wanted(notes, on_replica)* holds."""
    give_up, pause = time.monotonic() + within_s, threading.Event()
    while not wanted(*(found := await read(kit, tenant, **given))):
        assert time.monotonic() < give_up, found
        pause.wait(0.01)
    return found[0]


def from_replica(_notes, on_replica):
    return on_replica


async def test_a_replica_that_is_new_enough_serves_reads(kit, tenant):
    await write(kit, tenant, "one")
    assert await read_until(kit, tenant, from_replica) == ["one"]
    async with kit.read(tenant, max_lag_s=60.0) as s:
        order = (await s.scalars(select(Order))).one()
        assert (await s.get(Order, order.id)) is order
        assert (s.on_replica, s.route.server) == (True, "pg2")


async def test_without_asking_it_is_the_primary(kit, tenant):
    await write(kit, tenant, "one")
    await read_until(kit, tenant, from_replica)
    assert await read(kit, tenant, replica=None) == (["one"], False)
    assert await read(kit, tenant, replica=False) == (["one"], False)


async def test_the_setting_read_from_asks_for_it(open_kit, tenant):
    kit = open_kit(replica_check_s=0.05, read_from="replica", replica_max_lag_s=FAR_S)
    await write(kit, tenant, "one")
    assert await read_until(kit, tenant, from_replica, replica=None) == ["one"]


async def test_a_replica_that_lags_for_ever_is_not_read_beyond_the_bound(kit, tenant, slow):
    await read_until(kit, tenant, from_replica, max_lag_s=FAR_S)
    await write(kit, tenant, "old")
    committed_at = time.monotonic()
    assert await read(kit, tenant, max_lag_s=FAR_S) == ([], True)  # it does lag: who allows it reads the past
    pause = threading.Event()
    while time.monotonic() < committed_at + 0.5:
        pause.wait(0.01)
    for _ in range(20):
        assert await read(kit, tenant, max_lag_s=0.5) == (["old"], False)


async def test_a_block_sees_its_own_writes(kit, tenant, slow):
    await read_until(kit, tenant, from_replica, max_lag_s=FAR_S)
    with kit.tenant(tenant):
        for number in range(5):
            async with kit.begin() as s:
                s.add(Order(note=f"note {number}"))
            async with kit.read(max_lag_s=FAR_S) as s:
                assert len((await s.scalars(select(Order))).all()) == number + 1
        with kit.tenant(tenant):
            assert len((await read(kit, tenant, max_lag_s=FAR_S))[0]) == 5
    assert await read(kit, tenant, max_lag_s=FAR_S) == ([], True)  # outside the block nothing was promised


async def test_own_writes_are_waited_for_on_the_replica(open_kit, tenant):
    kit = open_kit(replica_check_s=0.05, replica_max_lag_s=FAR_S, replica_wait_s=60.0)
    with kit.tenant(tenant):
        await write(kit, tenant, "mine")
        assert await read_until(kit, tenant, from_replica) == ["mine"]


async def test_a_token_carries_own_writes_to_another_program(kit, open_kit, tenant, slow):
    other = open_kit(replica_check_s=0.05)
    await read_until(other, tenant, from_replica, max_lag_s=FAR_S)
    await write(kit, tenant, "mine")
    token = await kit.token(tenant)
    assert await read(other, tenant, max_lag_s=FAR_S) == ([], True)
    assert await read(other, tenant, max_lag_s=FAR_S, token=token) == (["mine"], False)
    with other.tenant(tenant, token=token):
        assert await read(other, tenant, max_lag_s=FAR_S) == (["mine"], False)


@pytest.mark.parametrize("rows", [1, 2], ids=["lone insert", "two rows"])
async def test_a_session_brings_its_token_home_with_the_commit(kit, open_kit, tenant, slow, rows):
    other = open_kit(replica_check_s=0.05)
    await read_until(other, tenant, from_replica, max_lag_s=FAR_S)
    async with kit.begin(tenant) as s:
        s.add_all([Order(note=f"mine {n}") for n in range(rows)])
        assert s.token is None
    mine = [f"mine {n}" for n in range(rows)]
    assert await read(other, tenant, max_lag_s=FAR_S) == ([], True)
    assert await read(other, tenant, max_lag_s=FAR_S, token=s.token) == (mine, False)
    with other.tenant(tenant, token=s.token):
        assert await read(other, tenant, max_lag_s=FAR_S) == (mine, False)


async def test_a_replica_that_has_what_a_sessions_token_says_serves_it(kit, tenant):
    async with kit.session(tenant) as s:
        await s.execute(text("INSERT INTO orders (note) VALUES ('text')"))
        await s.commit()
        first = s.token
        async with s.begin_nested():
            s.add(Order(note="nested"))
        assert s.token == first  # a savepoint's release commits nothing
        await s.commit()
        second = s.token
        assert (await s.scalars(select(Order.note))).all()
        await s.commit()
        assert s.token == second  # it only read
    assert first != second
    assert await read_until(kit, tenant, from_replica, token=second) == ["nested", "text"]


async def test_only_what_was_committed_makes_a_token(kit, tenant):
    async with kit.session(tenant) as s:
        s.add(Order(note="never"))
        await s.flush()
        await s.rollback()
    assert s.token is None
    async with kit.read(tenant) as reading:
        assert (await reading.scalars(select(Order))).all() == []
    assert reading.token is None
    async with kit.shard(kit.locate(tenant).shard).session() as operator:
        await operator.execute(text("CREATE TEMP TABLE scratch ()"))
        await operator.commit()
    assert operator.token is None


async def test_a_run_that_is_tracked_has_a_token_too(kit, tenant):
    sessions = []

    async def work(s):
        sessions.append(s)
        s.add_all([Order(note="one"), Order(note="two")])

    await kit.run(tenant, work)
    assert await read_until(kit, tenant, from_replica, token=sessions[-1].token) == ["one", "two"]


async def test_a_token_of_a_server_without_replicas_leads_to_the_primary(kit, fleet, tenant):
    there = next(t for t in (f"{tenant}-{n}" for n in range(1000)) if fleet.map.locate(t).server == "pg1")
    async with kit.begin(there) as s:
        s.add(Order(note="mine"))
    assert await read(kit, there, token=s.token) == (["mine"], False)


async def test_a_sessions_token_from_before_a_move_leads_to_the_primary(kit, fleet, tenant, slow):
    await read_until(kit, tenant, from_replica, max_lag_s=FAR_S)
    async with kit.begin(tenant) as s:
        s.add(Order(note="mine"))
    before = s.token
    fleet.move(kit.locate(tenant), elsewhere=True)
    async with kit.begin(tenant) as s:  # the map is old: the first statement is led on, and the token with it
        s.add(Order(note="there"))
    for token in (before, s.token):
        assert await read(kit, tenant, max_lag_s=FAR_S, token=token) == (["mine", "there"], False)
    fleet.move(kit.locate(tenant), elsewhere=True)  # and back, so that it has a replica again
    for token in (before, s.token):
        assert await read(kit, tenant, max_lag_s=FAR_S, token=token) == (["mine", "there"], False)


async def test_a_replica_that_has_what_the_token_says_serves_it(kit, tenant):
    await write(kit, tenant, "mine")
    token = await kit.token(tenant)
    assert await read_until(kit, tenant, from_replica, token=token) == ["mine"]


async def test_a_token_from_before_a_move_leads_to_the_primary(kit, open_kit, fleet, tenant, slow):
    old_map = open_kit(replica_check_s=0.05)
    await read_until(old_map, tenant, from_replica, max_lag_s=FAR_S)
    await write(kit, tenant, "mine")
    token = await kit.token(tenant)
    fleet.move(kit.locate(tenant), elsewhere=False)
    assert await read(old_map, tenant, max_lag_s=FAR_S, token=token) == (["mine"], False)
    await kit.refresh()
    assert await read(kit, tenant, max_lag_s=FAR_S, token=token) == (["mine"], False)


async def test_after_a_move_an_old_map_is_led_on_from_the_replica(kit, fleet, tenant):
    await write(kit, tenant, "mine")
    await read_until(kit, tenant, from_replica)
    before = kit.locate(tenant)
    kit._router.watch.close()
    fleet.move(before, elsewhere=False)
    assert await read_until(kit, tenant, lambda notes, _: kit.locate(tenant).epoch > before.epoch, max_lag_s=FAR_S) == ["mine"]


@pytest.mark.parametrize("token", ["", "x", "A" * 47, "é" * 47, "=" * 47, None], ids=repr)
async def test_a_malformed_or_forged_token_is_an_error(kit, tenant, token):
    if token is None:
        async with kit.begin(tenant) as s:
            s.add(Order(note="mine"))
        good = s.token
        token = good[:10] + ("A" if good[10] != "A" else "B") + good[11:]
    with pytest.raises(TokenError):
        kit.read(tenant, token=token)
    with pytest.raises(TokenError):
        kit.tenant(tenant, token=token)


async def test_a_token_made_with_another_key_is_an_error(kit, open_kit, tenant):
    signed = open_kit(token_key="a secret")
    with pytest.raises(TokenError):
        signed.read(tenant, token=await kit.token(tenant))
    async with signed.begin(tenant) as s:
        s.add(Order(note="signed"))
    with pytest.raises(TokenError):
        kit.read(tenant, token=s.token)
    for token in (await signed.token(tenant), s.token):
        assert (await read(signed, tenant, token=token))[0] == ["signed"]


async def test_a_token_of_another_cluster_is_an_error(kit, tenant):
    theirs = seal(Token(kit.locate(tenant).shard, 1, Position(1, 1)), token_key(uuid4(), None))
    for use in (kit.read, kit.tenant):
        with pytest.raises(TokenError, match="another cluster"):
            use(tenant, token=theirs)


async def test_what_is_not_a_plain_select_goes_to_the_primary(kit, tenant):
    await write(kit, tenant, "one")
    await read_until(kit, tenant, from_replica)
    async with kit.read(tenant, replica=True) as s:
        assert (await s.scalars(select(Order.note))).all() == ["one"]
        assert s.on_replica
        assert await s.scalar(text("SELECT pg_is_in_recovery()")) is False
        assert not s.on_replica
    async with kit.read(tenant, replica=True) as s:
        assert await s.scalar(select(func.pg_backend_pid()))
        assert not s.on_replica
    async with kit.read(tenant, replica=True) as s:
        rows = await s.stream_scalars(select(Order.note).execution_options(yield_per=5))
        assert [note async for note in rows] == ["one"]
        assert not s.on_replica
    async with kit.read(tenant, replica=True) as s:
        await s.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        assert (await s.scalars(select(Order.note))).all() == ["one"]
        assert (await s.scalar(text("SHOW transaction_isolation")), s.on_replica) == ("repeatable read", False)
    with pytest.raises(ReadOnlyError):
        async with kit.read(tenant, replica=True) as s:
            await s.execute(Order.__table__.insert().values(note="new"))


async def test_an_error_of_the_program_is_its_own(kit, tenant):
    await read_until(kit, tenant, from_replica)
    with pytest.raises(exc.DataError, match="division"):
        async with kit.read(tenant, replica=True) as s:
            await s.execute(select(Order.id / 0).union(select(1 / func.length(""))))


async def test_a_replica_shows_no_other_tenants_rows(kit, neighbours, fleet, tenant):
    names = [n for n in (f"{tenant}-n{i}" for i in range(5000)) if fleet.map.shard_of(n) == fleet.map.shard_of(tenant)]
    other = names[0]
    await write(kit, tenant, "mine")
    await write(kit, other, "theirs")
    for _ in range(10):
        assert await read_until(kit, tenant, from_replica) == ["mine"]
        assert await read_until(kit, other, from_replica) == ["theirs"]


async def test_a_bound_that_is_none_is_refused(kit, tenant):
    for bound in (0, -1.0, float("inf"), float("nan")):
        with pytest.raises(SessionError):
            kit.read(tenant, max_lag_s=bound)


async def test_a_replica_that_is_killed_is_replaced_by_the_primary(kit, fleet, tenant):
    await write(kit, tenant, "one")
    await read_until(kit, tenant, from_replica)
    fleet.standby.end()
    try:
        for _ in range(20):  # its idle connections are dead, new ones are refused
            assert await read(kit, tenant) == (["one"], False)
    finally:
        fleet.standby.start()
    assert await read_until(kit, tenant, from_replica) == ["one"]


async def test_a_replica_that_is_frozen_costs_a_call_at_most(open_kit, fleet, tenant, monkeypatch):
    monkeypatch.setattr(replicas, "_SILENT_AFTER", 5)
    kit = open_kit(replica_check_s=0.05, replica_max_lag_s=FAR_S, connect_timeout_s=3.0, call_timeout_s=3.0)
    await write(kit, tenant, "one")
    await read_until(kit, tenant, from_replica)
    pids = [fleet.standby.pid]
    with fleet.standby.admin() as connection:
        pids += [pid for (pid,) in connection.execute("SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend'")]
        pids.remove(connection.info.backend_pid)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        for _ in range(5):
            assert await read(kit, tenant) == (["one"], False)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


async def test_a_read_session_that_stays_open_sees_later_writes_of_its_block_too(kit, tenant, slow):
    await read_until(kit, tenant, from_replica, max_lag_s=FAR_S)
    with kit.tenant(tenant):
        async with kit.read(max_lag_s=FAR_S) as s:
            assert (await s.scalars(select(Order.note))).all() == []
            assert s.on_replica
            await write(kit, tenant, "mine")
            assert (await s.scalars(select(Order.note))).all() == ["mine"]


async def test_a_read_session_that_stays_open_does_not_fall_behind_its_bound(kit, tenant, slow):
    await read_until(kit, tenant, from_replica, max_lag_s=1.0)
    async with kit.read(tenant, max_lag_s=1.0) as s:
        assert (await s.scalars(select(Order.note))).all() == []
        await write(kit, tenant, "later")
        committed_at, pause = time.monotonic(), threading.Event()
        while time.monotonic() < committed_at + 1.0:
            pause.wait(0.01)
        assert (await s.scalars(select(Order.note))).all() == ["later"]
