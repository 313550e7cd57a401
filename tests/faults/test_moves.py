"""Moves on real servers, ill-treated at every step: whatever happens, nothing is lost, doubled or left behind."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import threading

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from shardkit.catalog.ledger import hold_shards
from shardkit.core import moving as m
from shardkit.core.names import schema_name
from shardkit.db.connect import connect_admin
from shardkit.errors import (
    FenceTimeoutError,
    MoveBusyError,
    MoveError,
    MoveInterruptedError,
    MoveRefusedError,
    NotEqualError,
    PastNoReturnError,
    ShardKitError,
    UnknownMoveError,
)
from shardkit.move import run
from shardkit.move.ends import SQL, End
from shardkit.move.fence import Fence
from shardkit.move.structure import stamp
from tests.faults.illtreat import (
    FAULTS,
    Killed,
    copy_refuses,
    forged_row_is_found,
    ill_treat,
    just_before,
    kill_mover,
    stall_once,
)
from tests.faults.lab import Load
from tests.faults.movelab import Lab

EFFECTS = 27  # of a whole move, with its clean-up
CASES = list(itertools.product(range(EFFECTS), FAULTS))
SHORT = random.Random(int(os.environ.get("SHARDKIT_SEED", "7"))).sample(CASES, 10) + [
    (n, "kill after") for n in (15, 20, 21, 22)
]


@pytest.fixture(scope="module")
def lab(local_cluster):
    with Lab.on_cluster(local_cluster) as lab:
        yield lab


@pytest.fixture(autouse=True)
def _tidy(lab):
    """Each test leaves the shard as whole and the servers as tidy as it found them."""
    yield
    lab.end_moves()
    assert lab.complaints() == []


def hit_one(lab, at, fault, then):
    before, ended = lab.place, ill_treat(lab, lab.begin(soak=True), at, fault, then=then)
    if ended.step is m.Step.ABORTED:
        assert lab.place == before


@pytest.mark.parametrize(("at", "fault"), SHORT)
def test_a_move_that_is_hit_can_be_gone_on_with_or_aborted(lab, at, fault):
    with Load(lab) as load:
        load.wait_for(5)
        hit_one(lab, at, fault, ("resume", "abort")[at % 2])
        load.wait_for(5)
    assert lab.complaints(load) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("then", ["resume", "abort"])
@pytest.mark.parametrize(("at", "fault"), CASES)
def test_every_effect_is_hit_in_every_way(lab, at, fault, then):
    with Load(lab) as load:
        hit_one(lab, at, fault, then)
        load.wait_for(2)
    assert lab.complaints(load) == []


def test_a_move_back_and_forth_with_rollback(lab):
    with Load(lab) as load:
        load.wait_for(20)
        first = lab.place
        move = lab.go_on(lab.begin())
        assert move.step is m.Step.SOAK
        load.wait_for(20)
        back = lab.go_back(move)
        assert back.step is m.Step.FINISHED
        load.wait_for(20)
    assert lab.place == (first.server, first.epoch + 2, None)
    assert lab.find(move).step is m.Step.FINISHED
    assert lab.complaints(load) == []


def test_a_look_at_the_structure_that_is_under_way_when_the_work_ends_leaves_no_session(lab, monkeypatch):
    """It asked for the fence's connection after all were closed, and so opened one that nobody closed."""
    closed, looked, ends = threading.Event(), threading.Event(), []
    look, close = Fence.same_structure, End.close

    def look_late(fence):
        try:
            closed.wait(3.0)
            look(fence)
        finally:
            looked.set()

    def close_all(end, purpose=None):
        close(end, purpose)
        if purpose is None:
            ends.append(end)
            closed.set()

    monkeypatch.setattr(Fence, "same_structure", look_late)
    monkeypatch.setattr(End, "close", close_all)
    move = lab.begin(soak=False)

    def around(effect, do):
        if not isinstance(effect, m.Lock):
            return do(effect)
        closed.clear()
        ends.clear()
        do(effect)
        raise Killed

    with pytest.raises(Killed):
        lab.go_on(move, around=around)
    assert looked.wait(60)
    assert len(ends) == 2
    assert all(not end._connections for end in ends)


@pytest.mark.parametrize("lateness", ["the mover", "the look"])
def test_a_fence_that_the_server_ended_because_its_budget_was_over_is_tried_again(lab, monkeypatch, eventually, lateness):
    """A mover that stalled for a quarter of a second under its lock gave up the whole move."""
    move = lab.begin(soak=False)
    stall = stall_once(lab, move, eventually)
    if lateness == "the mover":
        around = just_before(m.VerifyChanged, stall)
    else:
        look, around = Fence.same_structure, lambda effect, do: do(effect)

        def look_late(fence):
            stall()
            look(fence)

        monkeypatch.setattr(Fence, "same_structure", look_late)
    ended = lab.go_on(move, around=around)
    assert ended.step is m.Step.FINISHED
    assert ended.facts["tries"] >= 2


@pytest.mark.parametrize("at", [19, 22])  # the commit of the fence, and the flip
def test_an_operator_who_wakes_late_does_not_revive_a_move_that_has_ended(lab, at):
    """It found its connection to the catalog gone, made a new one, and took the lease anew: the move soaked again."""
    ill_treat(lab, lab.begin(), at, "hang", then="resume")
    assert lab.complaints() == []


def test_a_rollback_that_is_aborted_leaves_the_follower_for_the_next_one(lab):
    """It took the follower away with it, and the next rollback left a mark behind that nobody had registered."""
    with Load(lab) as load:
        first = lab.place
        move = lab.go_on(lab.begin())
        back = lab.begin_rollback(move)

        def lose_contact():
            raise m.LostContact("planted")

        with pytest.raises(MoveInterruptedError):
            lab.go_on(back, around=just_before(m.Lock, lose_contact))
        assert lab.go_on(back, "abort").step is m.Step.ABORTED
        assert lab.find(move).step is m.Step.SOAK
        load.wait_for(10)
        assert lab.go_back(move).step is m.Step.FINISHED
        load.wait_for(5)
    assert lab.place.server == first.server
    assert lab.complaints(load) == []


def test_a_killed_mover_process(lab):
    """SIGKILL, really: between the copy and the fence, and again after the fence."""
    with Load(lab) as load:
        for at in (10, 22):
            move = lab.begin(soak=False)
            kill_mover(lab, move, at)
            assert lab.go_on(move).step is m.Step.FINISHED
            load.wait_for(5)
    assert lab.complaints(load) == []


STOPPED = """
import sys, psycopg
connection = psycopg.connect(sys.argv[1], autocommit=True)
connection.execute("SET search_path TO " + sys.argv[2])
for _ in range(2):
    connection.execute("SELECT count(*) FROM tokens WHERE what = %s", ("x",), prepare=True)
connection.execute("BEGIN ISOLATION LEVEL " + sys.argv[3])
connection.execute("SELECT pg_current_snapshot()")
print("ready", flush=True)
sys.stdin.readline()
try:
    connection.execute("INSERT INTO tokens (what) VALUES (%s)", ("stale",))
    connection.execute("COMMIT")
    print("committed", flush=True)
except psycopg.Error as exc:
    print(exc.sqlstate, flush=True)
"""


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_a_stopped_client_that_wakes_after_the_drop_never_commits(lab, isolation):
    """It had its snapshot before the fence, but no lock (and no xid: a slot would wait for it)."""
    place = lab.place
    command = [sys.executable, "-c", STOPPED, lab.servers[place.server], schema_name(0, place.epoch), isolation]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout.readline() == "ready\n"
        os.kill(client.pid, signal.SIGSTOP)
        assert lab.move().step is m.Step.FINISHED
        os.kill(client.pid, signal.SIGCONT)
        said, _ = client.communicate("go\n", timeout=200)
    assert said.strip() in {"42P01", "3F000"}
    assert lab.rows("SELECT count(*) FROM tokens WHERE what = 'stale'") == [(0,)]


def test_an_idle_transaction_holds_up_the_fence_but_no_writer(lab):
    with Load(lab) as load, psycopg.connect(lab.servers[lab.place.server]) as idle:
        load.wait_for(5)
        move = lab.begin(soak=False)
        blocked = threading.Event()

        def around(effect, do):
            if isinstance(effect, m.Enter) and effect.step is m.Step.FENCE:
                idle.execute(f"LOCK TABLE {schema_name(0, lab.place.epoch)}.accounts IN ROW EXCLUSIVE MODE")
            if isinstance(effect, m.LetThrough):
                blocked.set()
                load.wait_for(2)  # writers go on between tries
                if effect.attempt == 4:
                    idle.rollback()
            return do(effect)

        ended = lab.go_on(move, around=around)
        assert blocked.is_set()
        assert ended.step is m.Step.FINISHED
        assert ended.facts["tries"] >= 4
    assert lab.complaints(load) == []


def test_a_blocker_that_stays_is_named_and_the_move_can_be_resumed(lab):
    with psycopg.connect(lab.servers[lab.place.server], application_name="night report") as idle:
        move = lab.begin(soak=False)

        def around(effect, do):
            if isinstance(effect, m.Enter) and effect.step is m.Step.FENCE:
                idle.execute(f"LOCK TABLE {schema_name(0, lab.place.epoch)}.accounts IN ROW EXCLUSIVE MODE")
            return do(effect)

        with pytest.raises(FenceTimeoutError, match="night report"):
            lab.go_on(move, around=around, options=run.MoveOptions(give_up_after_s=0.5))
        ended = lab.go_on(move, options=run.MoveOptions(kill_blockers_after_s=0.1))
        assert ended.step is m.Step.FINISHED
        with pytest.raises(psycopg.OperationalError):
            idle.execute("SELECT 1")


def test_a_prepared_transaction_in_the_way_is_named(lab):
    """It has no session, and holds its locks all the same."""
    move, left = lab.begin(soak=False), f"left by {lab.place.server}"
    with lab.on(move.source) as connection:

        def around(effect, do):
            if isinstance(effect, m.Enter) and effect.step is m.Step.FENCE:
                connection.execute("BEGIN")
                connection.execute(f"LOCK TABLE {schema_name(0, move.epoch)}.accounts IN ROW EXCLUSIVE MODE")
                connection.execute(f"PREPARE TRANSACTION '{left}'")
            return do(effect)

        try:
            with pytest.raises(FenceTimeoutError, match=f"prepared transaction {left}"):
                lab.go_on(move, around=around, options=run.MoveOptions(give_up_after_s=0.5, kill_blockers_after_s=0.0))
        finally:
            connection.execute(f"ROLLBACK PREPARED '{left}'")
    assert lab.go_on(move).step is m.Step.FINISHED


def test_a_session_in_a_database_with_the_same_oids_is_no_blocker(shardkit_databases):
    """As in a copy made from a template: who is at work there holds no move up, nor is he ended for it."""
    url = shardkit_databases(1).servers["pg1"]
    name = conninfo_to_dict(url)["dbname"]
    there = {which: make_conninfo(url, dbname=which) for which in ("postgres", f"{name}_twin")}
    with psycopg.connect(url, autocommit=True) as here:
        here.execute("CREATE SCHEMA s CREATE TABLE t ()")
        (oid,) = here.execute("SELECT 's.t'::regclass::oid").fetchone()
    with psycopg.connect(there["postgres"], autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(*map(sql.Identifier, (f"{name}_twin", name))))
        try:
            with psycopg.connect(there[f"{name}_twin"]) as other:
                other.execute("LOCK TABLE s.t IN ROW EXCLUSIVE MODE; CREATE TABLE s.more ()")
                found = []
                for where in (url, there[f"{name}_twin"]):
                    with psycopg.connect(where) as asked:
                        blockers = [pid for pid, *_ in asked.execute(SQL["blockers"], {"tables": [oid]})]
                        found.append((blockers, stamp(asked, "s", [])[1]))
                assert found == [([], 0), ([other.info.backend_pid], 1)]
        finally:
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(f"{name}_twin")))


def test_a_row_changed_behind_the_movers_back_is_found(lab):
    forged_row_is_found(lab)


@pytest.mark.parametrize(
    "change", ["INSERT INTO tokens (what) VALUES ('forged')", "DELETE FROM tokens WHERE id = 9", "TRUNCATE tokens"]
)
def test_a_foreign_writer_under_the_fence_is_found(lab, change):
    move = lab.begin()

    def write():
        with lab.on(move.target) as connection:
            connection.execute(f"SET session_replication_role = replica; SET search_path TO {schema_name(0, move.epoch)}")
            connection.execute(change)

    with pytest.raises(NotEqualError, match="somebody wrote to table tokens"):
        lab.go_on(move, around=just_before(m.Mark, write))
    assert lab.go_on(move, "abort").step is m.Step.ABORTED


def test_the_copy_refuses_writes_of_its_own(lab):
    move = lab.begin()
    copy_refuses(lab, move, f"INSERT INTO {schema_name(0, move.epoch)}.tokens (what) VALUES ('x')")
    with lab.on(move.source) as connection, pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        connection.execute(f"DELETE FROM {schema_name(0, move.epoch + 1)}.tokens")
    lab.go_on(move, "finish")


@pytest.mark.parametrize(
    ("moment", "ddl"),
    [
        (m.CatchUp, "ALTER TABLE tokens ADD COLUMN more int"),
        (m.Lock, "ALTER TABLE tokens ALTER COLUMN what SET DEFAULT 'y'"),
        (m.Lock, "CREATE TABLE late (id int PRIMARY KEY)"),
        (m.Lock, "CREATE FUNCTION late() RETURNS int LANGUAGE sql RETURN 1"),
        (m.Verify, "CREATE INDEX late_idx ON tokens (what)"),
        (m.Lock, "ALTER TYPE hue ADD VALUE 'blue'"),
        (m.Lock, "ALTER DOMAIN short ADD CONSTRAINT one CHECK (length(VALUE) = 1)"),
        (m.Lock, "CREATE RULE late AS ON UPDATE TO ruled DO INSTEAD NOTHING"),
        (m.Lock, "ALTER INDEX tokens_what RENAME TO late_idx"),
    ],
)
def test_ddl_during_the_move_is_found_before_the_flip(lab, moment, ddl):
    move = lab.begin()
    schema = schema_name(0, move.epoch)
    done = []
    with lab.on(move.source) as connection:
        connection.execute(f"SET search_path TO {schema}")
        connection.execute(
            "CREATE TYPE hue AS ENUM ('red'); CREATE DOMAIN short AS text; CREATE TABLE ruled (a int PRIMARY KEY); "
            "CREATE RULE old AS ON DELETE TO ruled DO INSTEAD NOTHING; CREATE INDEX tokens_what ON tokens (what)"
        )

    def around(effect, do):
        if isinstance(effect, moment) and not done:
            done.append(1)
            with lab.on(move.source) as connection:
                connection.execute(f"SET search_path TO {schema}")
                connection.execute(ddl)
        return do(effect)

    with pytest.raises(NotEqualError, match="structure"):
        lab.go_on(move, around=around)
    assert lab.go_on(move, "abort").step is m.Step.ABORTED
    with lab.on(move.source) as connection:
        connection.execute(f"SET search_path TO {schema}")
        connection.execute(
            "ALTER TABLE tokens DROP COLUMN IF EXISTS more; ALTER TABLE tokens ALTER COLUMN what DROP DEFAULT; "
            "DROP TABLE IF EXISTS late; DROP FUNCTION IF EXISTS late(); DROP INDEX IF EXISTS late_idx, tokens_what; "
            "DROP TABLE ruled; DROP DOMAIN short; DROP TYPE hue"
        )


@pytest.mark.parametrize(
    ("ddl", "undo", "said"),
    [
        ("CREATE TABLE keyless (a int)", "DROP TABLE keyless", "no key"),
        ("CREATE UNLOGGED TABLE quick (a int PRIMARY KEY)", "DROP TABLE quick", "unlogged"),
        (
            "CREATE TABLE parts (a int PRIMARY KEY) PARTITION BY RANGE (a)",
            "DROP TABLE parts",
            "parts is partitioned.*plain table",
        ),
        (
            "CREATE TABLE parts (a int PRIMARY KEY) PARTITION BY RANGE (a); CREATE TABLE part1 PARTITION OF parts DEFAULT",
            "DROP TABLE parts",
            "part1 is partitioned.*\n.*table parts is partitioned",
        ),
        ("CREATE TABLE kid () INHERITS (tokens)", "DROP TABLE kid", "table kid is partitioned or inherits"),
        ("CREATE AGGREGATE added (int) (SFUNC = int4pl, STYPE = int)", "DROP AGGREGATE added (int)", "of a kind"),
        (
            "CREATE FUNCTION f() RETURNS bigint LANGUAGE sql AS $$SELECT count(*) FROM {schema}.tokens$$",
            "DROP FUNCTION f()",
            "names the schema",
        ),
        (
            "CREATE FUNCTION f() RETURNS int LANGUAGE sql SET search_path FROM CURRENT AS 'SELECT 1'",
            "DROP FUNCTION f()",
            r"f\(\) names the schema",
        ),
        (
            "CREATE TYPE hue AS ENUM ('red'); CREATE TABLE public.outside (h hue, i int DEFAULT nextval('tokens_id_seq'))",
            "DROP TABLE public.outside; DROP TYPE hue",
            "column h of table public.outside lies outside",
        ),
        (
            """CREATE TYPE hue AS ENUM ('red'); CREATE FUNCTION f(hue) RETURNS int LANGUAGE sql RETURN 1;
            CREATE CAST (hue AS int) WITH FUNCTION f(hue)""",
            "DROP TYPE hue CASCADE",
            "cast from .*hue to integer is of a kind",
        ),
        (
            """CREATE UNIQUE INDEX half ON tokens (id);
            UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'half'::regclass""",
            "DROP INDEX half",
            "half was not finished",
        ),
        ("CREATE VIEW public.outside AS SELECT * FROM tokens", "DROP VIEW public.outside", "lies outside"),
        ("CREATE TABLE x (a int PRIMARY KEY, CHECK (public.only_here(a)))", "DROP TABLE x", "cannot be made on the target"),
    ],
)
def test_what_would_fail_later_is_refused_before_anything_is_copied(lab, ddl, undo, said):
    schema = schema_name(0, lab.place.epoch)
    with lab.on(lab.place.server) as connection:
        connection.execute(f"SET search_path TO {schema}")
        connection.execute("CREATE OR REPLACE FUNCTION public.only_here(int) RETURNS bool LANGUAGE sql IMMUTABLE RETURN true")
        connection.execute(ddl.replace("{schema}", schema))
        move = lab.begin()
        with pytest.raises(MoveRefusedError, match=said):
            lab.go_on(move)
        connection.execute(undo)
        connection.execute("DROP FUNCTION public.only_here(int)")
    assert lab.go_on(move, "abort").step is m.Step.ABORTED


def test_a_second_move_of_the_same_shard_is_refused(lab):
    move = lab.begin()
    with pytest.raises(MoveBusyError):
        lab.begin()
    with pytest.raises(UnknownMoveError):
        lab.begin_rollback(move)
    lab.go_on(move, "abort")


def test_a_migration_under_way_keeps_the_move_away(lab):
    move = lab.begin()
    with connect_admin(lab.settings.catalog_url, lab.settings) as catalog:
        assert hold_shards(catalog, [0]) == {0}
        with pytest.raises(MoveBusyError, match="migration"):
            lab.go_on(move)
    lab.go_on(move, "abort")


def test_bad_targets_are_refused(lab):
    with pytest.raises(MoveRefusedError, match="already"):
        run.begin(lab.settings, 0, lab.place.server)
    with pytest.raises(ShardKitError, match="not in the map"):
        run.begin(lab.settings, 77, lab.other)
    with pytest.raises(ShardKitError, match="not in the map"):
        run.begin(lab.settings, 0, "nowhere")


def test_a_stray_schema_on_the_target_is_not_touched(lab):
    place, move = lab.place, lab.begin()
    with lab.on(move.target) as connection:
        connection.execute(f"CREATE SCHEMA {schema_name(0, place.epoch)}; CREATE TABLE {schema_name(0, place.epoch)}.mine ()")
        with pytest.raises(MoveRefusedError, match="no move of the journal made"):
            lab.go_on(move)
        lab.go_on(move, "abort")
        connection.execute(f"DROP TABLE {schema_name(0, place.epoch)}.mine; DROP SCHEMA {schema_name(0, place.epoch)}")


def test_a_catalog_that_lost_the_move_is_not_overwritten(lab):
    """The catalog was put back to another map in between: the flip compares, and refuses."""
    move = lab.begin()
    with psycopg.connect(lab.settings.catalog_url, autocommit=True) as catalog:

        def raise_epochs(by):
            catalog.execute("UPDATE shardkit_catalog.placements SET epoch = epoch + %s", (by,))

        with pytest.raises(ShardKitError, match="older backup"):
            lab.go_on(move, around=just_before(m.Flip, lambda: raise_epochs(40)))
        with pytest.raises(PastNoReturnError):
            lab.go_on(move, "abort")
        raise_epochs(-40)
    assert lab.go_on(move).step is m.Step.SOAK
    lab.go_on(move, "finish")


def test_a_target_that_dies_in_the_middle_of_the_copy(lab, local_cluster):
    victim = next(
        s.name
        for s in local_cluster.servers
        if f":{s.port}/" in lab.servers[lab.other] or f"port={s.port}" in lab.servers[lab.other]
    )
    if victim == local_cluster.servers[0].name:
        lab.move()  # so that the catalog's server is not the one to die
        victim = local_cluster.servers[1].name
    move = lab.begin(soak=False)
    with pytest.raises((MoveInterruptedError, MoveError, ShardKitError)):
        lab.go_on(move, around=just_before(m.Complete, lambda: local_cluster.kill_server(victim)))
    assert lab.rows("SELECT count(*) FROM accounts") == [(8,)]
    local_cluster.start_server(victim)
    assert lab.go_on(move).step is m.Step.FINISHED


def test_the_checkers_see_what_is_planted(lab):
    with Load(lab) as load:
        load.wait_for(3)
    writer, n = load.acked[0]
    rows = lab.rows("SELECT writer, n, id FROM entries")
    assert load.complaints([row for row in rows if row[:2] != (writer, n)])
    assert load.complaints([*rows, rows[0]])
    with lab.on(lab.other) as connection:
        connection.execute("CREATE SCHEMA s0000_e1; CREATE PUBLICATION forgotten")
        assert len(lab.complaints()) == 2
        connection.execute("DROP SCHEMA s0000_e1; DROP PUBLICATION forgotten")
