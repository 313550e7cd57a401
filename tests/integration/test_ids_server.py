"""Ids from a real server: never repeated, never going back, whatever clock, crowd, crash or cancel does."""

from __future__ import annotations

import multiprocessing
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from idlab import INSTAGRAM, SCHEMA, SHARD, START_US, Lab, laboratory
from psycopg import errors

from benchmarks.idcheck import Draw, Faults, check, draw_many
from benchmarks.idcheck import draw as draw_from
from shardkit.core import names
from shardkit.core.ids import EPOCH_MS, unpack
from shardkit.db.shard_objects import server_objects, shard_objects

CLEAN = Faults(repeated=0, inversions=0)
SECOND_US = 1_000_000
HOUR_US = 3600 * SECOND_US


@pytest.fixture
def lab(local_cluster):
    with laboratory(local_cluster.servers[0].url) as lab:
        yield lab


@pytest.fixture
def connection(lab):
    with lab.connect() as connection:
        yield connection


def draw(connection: psycopg.Connection, count: int) -> Draw:
    return draw_from(connection, count, schema=SCHEMA)


def crowd(lab: Lab, clients: int, sizes: list[int]) -> list[Draw]:
    with ThreadPoolExecutor(clients) as pool:
        return [one for many in pool.map(draw_many, [lab.url] * clients, [sizes] * clients, [SCHEMA] * clients) for one in many]


def test_the_checker_sees_what_it_is_for() -> None:
    assert check([Draw(0, 1, [1, 2]), Draw(2, 3, [3])]) == CLEAN
    assert check([Draw(0, 1, [1, 2]), Draw(0.5, 3, [2])]) == Faults(repeated=1, inversions=0)
    assert check([Draw(0, 1, [2, 1])]) == Faults(repeated=0, inversions=1)
    assert check([Draw(0, 1, [5]), Draw(2, 3, [4])]) == Faults(repeated=0, inversions=1)


def test_instagrams_function_goes_back(lab, connection) -> None:
    connection.execute(INSTAGRAM)
    assert check([draw(connection, 50_000)]).inversions > 0


def test_an_id_says_when_and_where_it_was_born(lab, connection) -> None:
    before, first, after = time.time_ns() // 1_000_000, draw(connection, 1).ids[0], time.time_ns() // 1_000_000
    born = unpack(first)
    assert before <= born.ms <= after
    assert born.shard == SHARD


def test_eight_processes_at_once(lab) -> None:
    sizes = [1, 1, 1, 100, 1, 700, 1, 3000, 1, 1, 1000] * 2
    with multiprocessing.get_context("spawn").Pool(8) as pool:
        draws = [one for many in pool.starmap(draw_many, [(lab.url, sizes, SCHEMA)] * 8, chunksize=1) for one in many]
    assert sum(len(one.ids) for one in draws) == 8 * sum(sizes)
    assert check(draws) == CLEAN


def test_a_burst_in_one_statement(connection) -> None:
    assert check([draw(connection, 20_000), draw(connection, 20_000)]) == CLEAN


def test_more_than_1024_in_a_millisecond_wait_for_the_clock(lab, connection) -> None:
    lab.install("virtual")
    lab.set_clock(START_US)
    drawn = draw(connection, 20_000)
    assert check([drawn]) == CLEAN
    assert lab.slept_us() == pytest.approx(19_000, abs=1_000)  # 20,000 ids are good for 19.5 ms
    assert unpack(drawn.ids[-1]).ms - START_US // 1000 == pytest.approx(19, abs=1)


@pytest.mark.parametrize("step_us", [-3_000, -50_000, -5 * SECOND_US, -HOUR_US])
def test_clock_set_back_neither_repeats_nor_stalls(lab, connection, step_us) -> None:
    lab.install("virtual")
    lab.set_clock(START_US)
    before = draw(connection, 3_000)
    lab.set_clock(START_US + step_us)
    slept_us = lab.slept_us()
    assert check([before, draw(connection, 1), draw(connection, 3_000)]) == CLEAN
    assert lab.slept_us() - slept_us <= 110_000  # a short step is waited for, a long one is counted over


def test_clock_an_hour_ahead_and_back(lab, connection) -> None:
    lab.install("virtual")
    draws = []
    for us in (START_US, START_US + HOUR_US, START_US + 1_000, START_US + 2_000, START_US + HOUR_US + SECOND_US):
        lab.set_clock(us)
        draws.append(draw(connection, 2_000))
    assert check(draws) == CLEAN
    assert unpack(draws[-1].ids[0]).ms == (START_US + HOUR_US + SECOND_US) // 1000  # caught up with the clock again
    assert lab.slept_us() < SECOND_US


def test_clock_before_2026(lab, connection) -> None:
    lab.install("virtual")
    lab.set_clock((EPOCH_MS - 10_000) * 1000)
    drawn = draw(connection, 2_000)
    assert check([drawn]) == CLEAN
    assert drawn.ids[0] > 0


def test_clock_past_2060_makes_no_id_and_harms_none(lab, connection) -> None:
    lab.install("virtual")
    lab.set_clock(START_US)
    before = draw(connection, 1)
    lab.set_clock((EPOCH_MS + (1 << 40)) * 1000)
    with pytest.raises(errors.DatetimeFieldOverflow, match="past the year 2060"):
        draw(connection, 1)
    lab.set_clock(START_US + SECOND_US)
    after = draw(connection, 1)
    assert check([before, after]) == CLEAN
    assert unpack(after.ids[0]).ms == (START_US + SECOND_US) // 1000
    assert lab.advisory_locks() == 0


def test_a_crowd_while_the_clock_jumps(lab) -> None:
    lab.install("offset")
    over = threading.Event()

    def jump() -> None:
        step = 0
        while not over.is_set():
            step += 1
            lab.set_clock([0, -5 * SECOND_US, 2_000, -4_000, -30_000][step % 5])

    jumper = threading.Thread(target=jump)
    jumper.start()
    try:
        draws = crowd(lab, 4, [1, 500, 1, 1, 2_000] * 4)
    finally:
        over.set()
        jumper.join()
    assert check(draws) == CLEAN


def stalled_between_reading_and_drawing(lab: Lab, *, edit=lambda text: text) -> list[Draw]:
    """A session sleeps over a raise of the origin, with its old origin in hand; then the clock is set back."""
    lab.install("virtual", edit=lambda text: edit(text.replace("began + nextval", "began + shardkit.lab_stall() + nextval")))
    with lab.connect() as keeper, lab.connect() as other, lab.connect() as stalled:
        keeper.execute(
            "CREATE FUNCTION shardkit.lab_stall() RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN"
            " IF current_setting('lab.stall', true) = 'on' THEN PERFORM set_config('lab.stall', 'off', false);"
            " PERFORM pg_advisory_lock(42), pg_advisory_unlock(42); END IF; RETURN 0; END $$"
        )
        keeper.execute("SELECT pg_advisory_lock(42)")
        lab.set_clock(START_US)
        draws = [draw(other, 1)]
        stalled.execute("SELECT set_config('lab.stall', 'on', false)")
        with ThreadPoolExecutor(1) as pool:
            late = pool.submit(draw, stalled, 10)
            wait_until(lambda: lab.scalar("SELECT count(*) FROM pg_locks WHERE objid = 42 AND NOT granted") == 1)
            lab.set_clock(START_US + 3_000)
            draws.append(draw(other, 3_500))
            lab.set_clock(START_US)
            keeper.execute("SELECT pg_advisory_unlock(42)")
            draws.append(late.result(timeout=30))
    return draws


def test_session_stalled_over_a_raise_of_the_origin(lab) -> None:
    assert check(stalled_between_reading_and_drawing(lab)) == CLEAN


def test_without_the_second_look_at_the_origin_the_checker_fails(lab) -> None:
    draws = stalled_between_reading_and_drawing(
        lab, edit=lambda text: text.replace("began = pg_sequence_last_value(origin)", "true")
    )
    assert check(draws).repeated > 0


def cancelled_often(lab: Lab, *, times: int) -> int:
    """Locks left behind in a session whose statements were cancelled while it raised the origin with every id."""
    lab.set_clock(START_US)
    with lab.connect() as victim, lab.connect() as other, ThreadPoolExecutor(1) as pool:
        draw(victim, 3)  # a session's first call plans for so long that the cancel would come before the origin is raised

        def drawn() -> int:
            row = other.execute(f"SELECT coalesce(pg_sequence_last_value('{SCHEMA}.shardkit_ids'), 0)").fetchone()
            assert row is not None
            return row[0]

        for _ in range(times):
            before = drawn()
            endless = f"SELECT count(id) FROM (SELECT {SCHEMA}.next_id() AS id, generate_series(1, 1000000000)) AS drawn"
            running = pool.submit(victim.execute, endless)
            wait_until(lambda: drawn() > before)  # noqa: B023  called at once
            other.execute("SELECT pg_cancel_backend(%s)", (victim.info.backend_pid,))
            with pytest.raises(errors.QueryCanceled):
                running.result(timeout=60)
        return lab.advisory_locks()


def test_cancel_while_raising_the_origin_leaves_no_lock(lab) -> None:
    lab.install("ticking")
    assert cancelled_often(lab, times=60) == 0


def test_a_lock_left_behind_would_be_seen(lab) -> None:
    lab.install(
        "ticking",
        edit=lambda text: text.replace(
            "CASE WHEN pg_advisory_unlock", "CASE WHEN pg_sleep(0.05)::text = '' AND pg_advisory_unlock"
        ),
    )
    assert cancelled_often(lab, times=10) > 0


def test_a_lock_left_behind_by_anything_stops_nobody(lab, connection) -> None:
    with lab.connect() as holder:
        before = draw(connection, 1)
        holder.execute("SELECT pg_advisory_lock(%s, %s)", (names.ID_LOCK_CLASS, SHARD))
        during = draw(connection, 5_000)
    assert check([before, during, draw(connection, 1)]) == CLEAN


def test_crash_and_restart(lab, local_cluster) -> None:
    server = local_cluster.servers[0]
    draws = crowd(lab, 3, [1] * 40 + [300])
    local_cluster.kill_server(server.name)
    local_cluster.start_server(server.name)
    draws += crowd(lab, 3, [1] * 40 + [300])
    assert check(draws) == CLEAN


def test_crash_while_the_clock_is_behind(lab, local_cluster) -> None:
    lab.install("virtual")
    lab.set_clock(START_US)
    server = local_cluster.servers[0]
    with lab.connect() as connection:
        connection.execute(f"CREATE TABLE {SCHEMA}.t (id bigint PRIMARY KEY DEFAULT {SCHEMA}.next_id())")
        lab.set_clock(START_US - HOUR_US)
        kept = [insert(connection, SCHEMA) for _ in range(50)]
    local_cluster.kill_server(server.name)
    local_cluster.start_server(server.name)
    with lab.connect() as connection:
        kept += [insert(connection, SCHEMA) for _ in range(50)]
    assert kept == sorted(set(kept))


def test_the_default_follows_a_rename_of_the_schema(lab, connection) -> None:
    connection.execute(f"SET search_path TO {SCHEMA}")
    connection.execute("CREATE TABLE t (id bigint PRIMARY KEY DEFAULT next_id())")
    connection.execute("RESET search_path")
    kept = [insert(connection, SCHEMA)]
    connection.execute(f"ALTER SCHEMA {SCHEMA} RENAME TO s0291_e18")
    kept += [insert(connection, "s0291_e18") for _ in range(3)]
    assert kept == sorted(set(kept))
    with pytest.raises(errors.InvalidSchemaName):
        draw(connection, 1)


def test_furniture_can_be_put_in_again(lab, connection) -> None:
    draws = [draw(connection, 100)]
    for statement in (*server_objects(), shard_objects(SHARD, SCHEMA)):
        connection.execute(statement)
    assert check([*draws, draw(connection, 100)]) == CLEAN


def test_the_documented_privileges_are_enough_and_needed(lab, connection) -> None:
    role = "shardkit_test_inserter"
    connection.execute(f"CREATE TABLE {SCHEMA}.t (id bigint PRIMARY KEY DEFAULT {SCHEMA}.next_id())")
    connection.execute(f"CREATE ROLE {role}")
    try:
        connection.execute(f"GRANT USAGE ON SCHEMA shardkit, {SCHEMA} TO {role}")
        connection.execute(f"GRANT INSERT, SELECT ON {SCHEMA}.t TO {role}")
        connection.execute(f"SET ROLE {role}")
        with pytest.raises(errors.InsufficientPrivilege):
            insert(connection, SCHEMA)
        connection.execute("RESET ROLE")
        connection.execute(f"GRANT USAGE, UPDATE ON ALL SEQUENCES IN SCHEMA {SCHEMA} TO {role}")
        connection.execute(f"SET ROLE {role}")
        assert insert(connection, SCHEMA) < insert(connection, SCHEMA)
    finally:
        connection.execute("RESET ROLE")
        connection.execute(f"DROP OWNED BY {role}")
        connection.execute(f"DROP ROLE {role}")


def insert(connection: psycopg.Connection, schema: str) -> int:
    row = connection.execute(f"INSERT INTO {schema}.t DEFAULT VALUES RETURNING id").fetchone()
    assert row is not None
    return row[0]


def wait_until(condition, *, timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
