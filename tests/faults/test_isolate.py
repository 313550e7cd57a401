"""One tenant is carried out of its shard on real servers, ill-treated at every step, while both tenants are written to."""

from __future__ import annotations

import itertools
import os
import random
import threading
from dataclasses import replace

import psycopg
import pytest
from locallab import at_work
from psycopg.types.json import Jsonb
from sqlalchemy import BigInteger, Column, Integer, MetaData, Table, Text, func, select, text

from shardkit.catalog.changes import pin
from shardkit.core import moving as m
from shardkit.core.easing import Limits
from shardkit.core.names import ID_SEQUENCE, schema_name
from shardkit.db.connect import connect_admin
from shardkit.errors import (
    FenceTimeoutError,
    MoveBusyError,
    MoveError,
    MoveRefusedError,
    NotEqualError,
    PastNoReturnError,
    ShardKitError,
    ShardMovedError,
    WalLimitError,
)
from shardkit.move import easing, run, work
from shardkit.move.isolate import begin_isolate, forecast
from shardkit.move.options import MoveOptions
from tests.faults.illtreat import FAULTS, Hit, copy_refuses, ill_treat, just_before, kill_mover, stall_once
from tests.faults.isolatelab import NEIGHBOUR, TABLES, Lab
from tests.faults.lab import ACCOUNTS, BALANCE, QUICK, TENANT, Load

EFFECTS, EFFECTS_OF_END, EFFECTS_BACK = 25, 4, 17  # of an isolate until it soaks, of its end, and of its rollback
CASES = list(itertools.product(range(EFFECTS + EFFECTS_OF_END), FAULTS))
CASES_BACK = list(itertools.product(range(EFFECTS_BACK), FAULTS))
_RANDOM = random.Random(int(os.environ.get("SHARDKIT_SEED", "11")))
SHORT = _RANDOM.sample(CASES, 4) + [(n, "kill after") for n in (20, 22)]
SHORT_BACK = [*_RANDOM.sample(CASES_BACK, 2), (9, "kill after")]

META = MetaData()
ACCOUNT = Table("accounts", META, Column("tenant_id", Text), Column("id", Integer), Column("balance", Integer))
ENTRY = Table("entries", META, Column("id", BigInteger, primary_key=True), Column("tenant_id", Text), Column("n", Integer))


@pytest.fixture(scope="module")
def lab(local_cluster):
    with Lab.on_cluster(local_cluster) as lab:
        yield lab


@pytest.fixture(autouse=True)
def _tidy(lab):
    """Each test leaves the tenant in the shard of its hash, and the servers as tidy as it found them."""
    yield
    lab.end_moves()
    go_home(lab)
    assert lab.complaints() == []


def go_home(lab):
    """The tenant back to the shard of its hash, by a rollback of one more isolate where it has left for good."""
    if (route := lab.route()).shard != lab.home.shard:
        with lab.on(route.server) as there, lab.on(lab.home.server) as home:
            old = lab.route(NEIGHBOUR).schema
            for table in TABLES:
                for (row,) in there.execute(
                    f"SELECT to_jsonb(t) FROM {route.schema}.{table} t WHERE tenant_id = %s", (TENANT,)
                ):
                    made = f"SELECT * FROM jsonb_populate_record(NULL::{old}.{table}, %s)"
                    home.execute(f"INSERT INTO {old}.{table} OVERRIDING SYSTEM VALUE {made}", (Jsonb(row),))
            home.execute(  # rows put there by hand do not move it, and the next isolate would hand out their numbers again
                f"SELECT setval(name, greatest(pg_sequence_last_value(name), (SELECT max(id) FROM {old}.tokens))) "
                f"FROM CAST(pg_get_serial_sequence('{old}.tokens', 'id') AS regclass) AS name"
            )
            for table in ("entries", "tokens", "accounts"):
                there.execute(f"DELETE FROM {route.schema}.{table}")
        with connect_admin(lab.settings.catalog_url, lab.settings) as catalog:
            pin(catalog, TENANT, None)


def hit_forward(lab, at, fault, then, target=None):
    with Load(lab) as load, Load(lab, NEIGHBOUR) as neighbour:
        load.wait_for(3)
        move, action = lab.begin(target), "resume"
        if at >= EFFECTS:
            assert lab.go_on(move).step is m.Step.SOAK
            at, action = at - EFFECTS, "finish"
        ill_treat(lab, move, at, fault, then=then, action=action)
        load.wait_for(3)
        neighbour.wait_for(3)
    assert lab.complaints(load, neighbour) == []


def hit_back(lab, at, fault):
    move = lab.go_on(lab.begin((lab.other, lab.home.server)[at % 2]))
    assert move.step is m.Step.SOAK
    with Load(lab) as load, Load(lab, NEIGHBOUR) as neighbour:
        load.wait_for(3)
        ill_treat(lab, lab.begin_rollback(move), at, fault, then="resume")
        load.wait_for(3)
        neighbour.wait_for(3)
    assert lab.route().shard == lab.home.shard
    assert lab.find(move).step is m.Step.FINISHED
    assert lab.complaints(load, neighbour) == []


@pytest.mark.parametrize(("at", "fault"), SHORT)
def test_an_isolate_that_is_hit_can_be_gone_on_with_or_aborted(lab, at, fault):
    hit_forward(lab, at, fault, ("resume", "abort")[at % 2], target=(lab.other, lab.home.server)[at // 2 % 2])


@pytest.mark.parametrize(("at", "fault"), SHORT_BACK)
def test_a_rollback_that_is_hit_can_be_gone_on_with(lab, at, fault):
    hit_back(lab, at, fault)


def test_the_way_back_lets_the_id_sequence_of_an_open_shard_alone(lab):
    """Others draw from it: set while they do, it would give a number twice."""

    def drawn():
        with lab.on(lab.home.server) as connection:
            schema = lab.route(NEIGHBOUR).schema
            return connection.execute(f"SELECT pg_sequence_last_value('{schema}.{ID_SEQUENCE}')").fetchone()[0]

    number = 1 + max(n for tenant in (TENANT, NEIGHBOUR) for _, n, _ in [(0, 0, 0), *lab.entries(tenant)])
    lab.kit.run(NEIGHBOUR, lab.unit, 0, number)
    move = lab.go_on(lab.begin(lab.other))
    before = drawn()
    lab.kit.run(TENANT, lab.unit, 0, number)  # a later number than any of the shard it left
    lab.go_back(move)
    assert drawn() == before


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("then", ["resume", "abort"])
@pytest.mark.parametrize(("at", "fault"), CASES)
def test_every_effect_is_hit_in_every_way(lab, at, fault, then):
    hit_forward(lab, at, fault, then, target=(lab.other, lab.home.server)[at % 2])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("at", "fault"), CASES_BACK)
def test_every_effect_of_a_rollback_is_hit_in_every_way(lab, at, fault):
    hit_back(lab, at, fault)


def test_the_number_of_effects_is_what_the_cases_cover(lab):
    counts = []

    def play(call):
        seen = Hit(10_000, "never")
        call(seen)
        counts.append(seen.count)

    once = replace(QUICK, budget_ms=100_000)  # a second try, because the machine stalled, would be counted too
    move = lab.begin()
    play(lambda seen: lab.go_on(move, around=seen, options=once))
    play(lambda seen: lab.go_back(move, around=seen, options=once))
    move = lab.begin(lab.home.server)
    lab.go_on(move)
    play(lambda seen: lab.go_on(move, "finish", around=seen))
    go_home(lab)
    assert counts == [EFFECTS, EFFECTS_BACK, EFFECTS_OF_END]


@pytest.mark.parametrize("same_server", [False, True])
def test_there_and_back_under_load_with_every_row_counted_once(lab, same_server):
    sums, stop = set(), threading.Event()

    def count():
        while not stop.wait(0.001):
            sums.add(lab.kit.fan_out_scalar(select(func.sum(ACCOUNT.c.balance)), deadline_s=120.0))

    counting = threading.Thread(target=count, daemon=True)
    with Load(lab) as load, Load(lab, NEIGHBOUR) as neighbour:
        counting.start()
        load.wait_for(10)
        was = lab.route()
        move = lab.go_on(lab.begin(lab.home.server if same_server else lab.other))
        assert move.step is m.Step.SOAK
        assert lab.route().shard == move.into_shard >= 1
        assert lab.route(NEIGHBOUR) == was._replace(tenant=NEIGHBOUR, epoch=was.epoch + 1, schema=schema_name(0, was.epoch + 1))
        load.wait_for(10)
        neighbour.wait_for(10)
        assert lab.complaints(soaking=True) == []
        assert lab.go_back(move).step is m.Step.FINISHED
        load.wait_for(10)
        neighbour.wait_for(10)
        stop.set()
        counting.join(200)
        assert not counting.is_alive()
    assert lab.route().shard == was.shard
    assert sums == {2 * ACCOUNTS * BALANCE}
    assert lab.complaints(load, neighbour) == []


def test_what_is_left_in_the_old_shard_is_seen_by_nobody_and_takes_no_rows(lab):
    move = lab.go_on(lab.begin())
    old = lab.route(NEIGHBOUR)
    with lab.on(old.server) as connection:
        connection.execute(f"SET search_path TO {old.schema}")
        count = "SELECT count(*) FROM tokens WHERE tenant_id = 'acme'"
        assert connection.execute(count).fetchone()[0] >= 50, "the rows are there, for a rollback"
        for role in ("shardkit_app", "shardkit_operator"):
            connection.execute(f"SET ROLE {role}; SET shardkit.tenant = 'acme'")
            assert connection.execute(count).fetchone() == (0,)
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute("INSERT INTO tokens (tenant_id, what) VALUES ('acme', 'lost')")
        connection.execute("RESET ROLE")
    lab.go_on(move, "finish")
    with lab.on(old.server) as connection:
        for table in ("accounts", "entries", "tokens", "shardkit_inbox"):
            column = "to_tenant" if table == "shardkit_inbox" else "tenant_id"
            query = f"SELECT count(*) FROM {old.schema}.{table} WHERE {column} = 'acme'"
            assert connection.execute(query).fetchone() == (0,)
        assert connection.execute(f"SELECT count(*) FROM {old.schema}.accounts").fetchone() == (ACCOUNTS,)
    go_home(lab)


def test_ids_born_in_the_old_shard_lead_to_the_new_one_and_back(lab):
    def newest(tenant):
        with lab.kit.read(tenant) as session:
            return session.scalar(select(func.max(ENTRY.c.id)))

    def found(key):
        with lab.kit.session_for_id(key) as session:
            return session.scalar(select(ENTRY.c.tenant_id).where(ENTRY.c.id == key)), session.route.shard

    with Load(lab) as load, Load(lab, NEIGHBOUR) as neighbour:
        load.wait_for(3)
        neighbour.wait_for(3)
    ours, theirs = newest(TENANT), newest(NEIGHBOUR)
    move = lab.go_on(lab.begin())
    lab.kit.refresh()
    assert lab.kit.locate_id(ours).shard == 0, "born there"
    assert lab.kit.route_of_id(ours).shard == move.into_shard
    assert found(ours) == (TENANT, move.into_shard)
    assert found(theirs) == (NEIGHBOUR, 0)
    with Load(lab) as load:
        load.wait_for(3)
    born_there = newest(TENANT)
    assert lab.kit.locate_id(born_there).shard == move.into_shard
    lab.go_back(move)
    lab.kit.refresh()
    assert found(born_there) == (TENANT, 0)
    assert lab.kit.route_of_id(born_there).shard == 0
    with lab.kit.session_for_id(ours) as session:  # a row that moves between two units of work of one session
        assert session.scalar(select(ENTRY.c.tenant_id).where(ENTRY.c.id == ours)) == TENANT
        session.commit()
        again = lab.go_on(lab.begin())
        assert session.scalar(select(ENTRY.c.tenant_id).where(ENTRY.c.id == ours)) == TENANT
        session.rollback()
    lab.go_back(again)


def test_a_killed_process(lab):
    """SIGKILL, really: between the copy and the fence, and again after the fence."""
    for at in (9, 20):
        with Load(lab) as load, Load(lab, NEIGHBOUR) as neighbour:
            move = lab.begin(soak=False)
            kill_mover(lab, move, at)
            assert lab.go_on(move).step is m.Step.FINISHED
            load.wait_for(5)
        assert lab.complaints(load, neighbour) == []
        go_home(lab)


def test_a_transaction_in_the_middle_is_told_that_it_is_not_done(lab):
    with lab.kit.session(NEIGHBOUR) as session:
        move = lab.go_on(lab.begin(), around=just_before(m.Lock, lambda: session.execute(text("SELECT 1 FROM accounts"))))
        with pytest.raises(ShardMovedError) as caught:
            session.execute(text("UPDATE accounts SET balance = balance WHERE id = 1"))
        assert caught.value.retryable
    lab.go_back(move)


def test_a_fence_that_the_server_ended_because_its_budget_was_over_is_tried_again(lab, eventually):
    move = lab.begin()
    move = lab.go_on(move, around=just_before(m.VerifyChanged, stall_once(lab, move, eventually)))
    assert move.step is m.Step.SOAK
    assert move.facts["tries"] >= 2
    lab.go_back(move)


def test_an_idle_transaction_holds_up_the_fence_and_is_named(lab):
    move = lab.begin()
    with psycopg.connect(lab.servers[lab.home.server], application_name="night report") as idle:

        def around(effect, do):
            if isinstance(effect, m.Enter) and effect.step is m.Step.FENCE:
                idle.execute(f"LOCK TABLE {schema_name(0, move.epoch)}.accounts IN ROW EXCLUSIVE MODE")
            return do(effect)

        with pytest.raises(FenceTimeoutError, match="night report"):
            lab.go_on(move, around=around, options=run.MoveOptions(give_up_after_s=0.5))
    assert lab.go_on(move, "abort").step is m.Step.ABORTED


def test_a_reader_that_stays_keeps_the_curtain_from_being_hung_but_not_for_ever(lab):
    move = lab.begin()
    with psycopg.connect(lab.servers[lab.home.server], application_name="night reader") as idle:
        idle.execute(f"SELECT count(*) FROM {schema_name(0, move.epoch)}.accounts")
        with pytest.raises(FenceTimeoutError, match=r"accounts.*locked for a moment.*night reader"):
            lab.go_on(move, options=run.MoveOptions(give_up_after_s=0.3, budget_ms=50))
    assert lab.go_on(move).step is m.Step.SOAK
    lab.go_back(move)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE tokens SET what = 'forged' WHERE id = (SELECT min(id) FROM tokens)",
        "DELETE FROM accounts WHERE id = 3",
        "TRUNCATE tokens",
    ],
)
def test_what_somebody_else_does_to_the_copy_is_made_good(lab, change):
    move, done = lab.begin(), []

    def around(effect, do):
        if isinstance(effect, m.Mark) and not done:
            done.append(1)
            with lab.on(move.target) as connection:
                connection.execute(
                    f"SET session_replication_role = replica; SET search_path TO {schema_name(move.into_shard, 1)}"
                )
                connection.execute(change)
        return do(effect)

    first = lab.rows("SELECT sum(hashtext(t::text)) FROM tokens t WHERE tenant_id = %s")
    assert lab.go_on(move, around=around).step is m.Step.SOAK
    assert lab.rows("SELECT sum(hashtext(t::text)) FROM tokens t WHERE tenant_id = %s") == first
    lab.go_back(move)


def test_a_change_under_way_is_carried_however_its_key_is_written(lab):
    key = "tenant_id text, hue hue, flag boolean, code char(5), host inet, at timestamptz"
    with lab.on(lab.home.server) as home:
        home.execute(f"SET search_path TO {lab.route().schema}, shardkit")
        home.execute("CREATE TYPE hue AS ENUM ('red')")  # called otherwise in the other shard
        home.execute(f"CREATE TABLE odd ({key}, n int, PRIMARY KEY (tenant_id, hue, flag, code, host, at))")
        home.execute("SELECT protect('odd')")
        home.execute("INSERT INTO odd VALUES (%s, 'red', true, 'ab', '10.0.0.1', now(), 0)", (TENANT,))

    def change():
        with lab.on(move.source) as source:
            source.execute(f"UPDATE {schema_name(move.shard, move.epoch)}.odd SET n = n + 1 RETURNING n")
            changes.append(1)

    try:
        move, changes = lab.begin(), []
        assert lab.go_on(move, around=just_before(m.Lock, change)).step is m.Step.SOAK
        assert lab.rows("SELECT n FROM odd") == [(len(changes),)]
        lab.go_back(move)
    finally:
        lab.end_moves()
        with lab.on(lab.home.server) as home:
            home.execute(f"SET search_path TO {lab.route(NEIGHBOUR).schema}; DROP TABLE odd; DROP TYPE hue")


def test_the_copy_refuses_writes_of_its_own(lab):
    move = lab.begin()
    copy_refuses(lab, move, f"INSERT INTO {schema_name(move.into_shard, 1)}.tokens (tenant_id, what) VALUES ('acme', 'x')")
    lab.go_back(move)


def test_ddl_in_between_is_found_before_the_flip(lab):
    move = lab.begin()

    def alter():
        with lab.on(move.source) as connection:
            connection.execute(f"ALTER TABLE {schema_name(0, move.epoch)}.tokens ALTER COLUMN what SET DEFAULT 'y'")

    with pytest.raises(NotEqualError, match="structure"):
        lab.go_on(move, around=just_before(m.Lock, alter))
    assert lab.go_on(move, "abort").step is m.Step.ABORTED
    with lab.on(move.source) as connection:
        connection.execute(f"ALTER TABLE {schema_name(0, move.epoch)}.tokens ALTER COLUMN what DROP DEFAULT")


def test_rows_that_nobody_can_tell_the_owner_of_are_refused_or_copied_wholly(lab):
    schema = lab.route().schema
    with lab.on(lab.home.server) as connection:
        connection.execute(f"INSERT INTO {schema}.loose VALUES (1), (2)")
        move = lab.begin()
        with pytest.raises(MoveRefusedError, match=r"table loose has rows and no column tenant_id.*--whole loose"):
            lab.go_on(move)
        lab.go_on(move, "abort")
        move = lab.go_on(lab.begin(whole=("loose",)))
        assert lab.rows("SELECT id FROM loose WHERE %s <> '' ORDER BY id") == [(1,), (2,)]
        with pytest.raises(MoveRefusedError, match="copied whole tables"):
            lab.begin_rollback(move)
        lab.go_on(move, "finish")
        schema = lab.route(NEIGHBOUR).schema
        assert connection.execute(f"DELETE FROM {schema}.loose").rowcount == 2
    go_home(lab)


def test_rows_that_come_into_such_a_table_meanwhile_stop_it(lab):
    move = lab.begin()
    schema = schema_name(0, move.epoch)
    insert = f"INSERT INTO {schema}.loose VALUES (1) ON CONFLICT DO NOTHING"
    with lab.on(lab.home.server) as connection:
        with pytest.raises(MoveError, match="got rows meanwhile"):
            lab.go_on(move, around=just_before(m.Lock, lambda: connection.execute(insert)))
        lab.go_on(move, "abort")
        connection.execute(f"DELETE FROM {schema}.loose")


def test_a_table_without_row_level_security_is_refused(lab):
    schema = lab.route().schema
    with lab.on(lab.home.server) as connection:
        connection.execute(f"ALTER TABLE {schema}.tokens DISABLE ROW LEVEL SECURITY")
        assert [f.what for f in forecast(lab.settings, TENANT, None).findings if f.refuses] == [
            "table tokens has no row-level security, so what is left of the tenant could not be hidden"
        ]
        connection.execute(f"ALTER TABLE {schema}.tokens ENABLE ROW LEVEL SECURITY")


def test_other_moves_of_either_shard_wait(lab):
    move = lab.go_on(lab.begin())
    for shard, target in ((0, lab.other), (move.into_shard, lab.home.server)):
        with pytest.raises(MoveBusyError):
            run.begin(lab.settings, shard, target)
    with pytest.raises(MoveBusyError):
        begin_isolate(lab.settings, NEIGHBOUR, None)
    with pytest.raises(MoveRefusedError, match="to itself already"):
        begin_isolate(lab.settings, TENANT, None)
    lab.go_back(move)


def test_a_pin_that_was_set_meanwhile_is_not_overwritten(lab):
    move = lab.begin()
    with connect_admin(lab.settings.catalog_url, lab.settings) as catalog:
        with pytest.raises(ShardKitError, match="was not changed"):
            lab.go_on(move, around=just_before(m.Flip, lambda: pin(catalog, TENANT, 0)))
        with pytest.raises(PastNoReturnError):
            lab.go_on(move, "abort")
        pin(catalog, TENANT, None)
    assert lab.go_on(move).step is m.Step.SOAK
    lab.go_back(move)


def test_the_checkers_see_what_is_planted(lab):
    with Load(lab) as load:
        load.wait_for(3)
    rows = lab.rows("SELECT writer, n, id FROM entries WHERE tenant_id = %s")
    assert load.complaints([row for row in rows if row[:2] != load.acked[0]])
    assert load.complaints([*rows, rows[0]])
    move = lab.go_on(lab.begin())
    old = lab.route(NEIGHBOUR)
    with lab.on(old.server) as connection:
        drawn = connection.execute("DELETE FROM shardkit.curtains RETURNING name").fetchone()
        assert any("shows rows of acme" in complaint for complaint in lab.complaints(soaking=True))
        with pytest.raises(MoveError, match="not hidden"):
            lab.go_on(move, "finish")
        connection.execute("INSERT INTO shardkit.curtains VALUES (%s)", drawn)
    assert any("left behind" in complaint for complaint in lab.complaints())
    lab.go_on(move, "finish")
    go_home(lab)


def test_an_isolate_spares_its_source_as_a_move_does(lab, monkeypatch):
    monkeypatch.setattr(easing, "LOOK_EVERY_S", 0.01)
    heard = []

    def report(news):
        if news.note.startswith("paused"):
            heard.append(news)
            busy.cancel_safe()

    with lab.on(lab.home.server) as busy, at_work(busy):
        move = lab.go_on(lab.begin(soak=False), options=MoveOptions(limits=Limits(active=0)), report=report)
    assert move.step is m.Step.FINISHED
    assert (heard[0].step, heard[0].note) == ("copy", "paused: 1 other sessions are at work on the source (limit 0)")


def test_an_isolate_that_holds_back_too_much_wal_undoes_itself(lab, monkeypatch):
    monkeypatch.setattr(work, "WAL_EVERY_S", -1.0)
    home, move = lab.route(), lab.begin()
    with pytest.raises(WalLimitError, match=rf"of WAL on server '{home.server}'.*It was undone"):
        lab.go_on(move, options=MoveOptions(wal_limit=1))
    assert lab.find(move).step is m.Step.ABORTED
    assert lab.route() == home
