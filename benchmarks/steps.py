"""What each step of the fast path brings: the same unit of work with it, and with that one step taken out again."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

from sqlalchemy.dialects.postgresql.psycopg import PGIdentifierPreparer_psycopg

from benchmarks.harness import Bench
from benchmarks.routing import Photo, Place, _delayed, _kit
from shardkit import ShardKit, run_local
from shardkit.db import connect, dialect
from shardkit.db.leg import driver_connection
from shardkit.db.opening import Opening
from shardkit.db.wire import _RoutedCursor
from shardkit.local.databases import fresh_databases
from shardkit.orm import session as orm_session

QUESTION: Final = "What does each step of the fast path bring, near and a network away?"
SHARDS: Final = 256
Operation = Callable[[], object]


def run(bench: Bench) -> None:
    """All keys, near and (``_rtt``) a network away: time with the step / time without it."""
    bench.params |= {"shards": SHARDS}
    with run_local(servers=2, redis=False, trust=True) as cluster, fresh_databases(cluster.servers, 3) as databases:
        place = Place(databases.servers, databases.catalog_url, shards=SHARDS, tenants=bench.pick(1024, 256))
        _measure(bench, place, {}, suffix="", block=bench.pick(200, 100))
        with ExitStack() as stack:
            far = {name: stack.enter_context(_delayed(place.urls[name])) for name in ("pg1", "pg2")}
            _measure(bench, place, far, suffix="_rtt", block=bench.pick(60, 30))


def _measure(bench: Bench, place: Place, servers: dict[str, str], *, suffix: str, block: int) -> None:
    rounds = bench.pick(11, 5)
    draw = random.Random(5)
    with ExitStack() as stack:
        kit = stack.enter_context(_kit(place, servers=servers))
        unprepared = stack.enter_context(_kit(place, servers=servers))

        def read(by: Callable[[str], Any]) -> Operation:
            def operation() -> None:
                tenant, key = draw.choice(place.owned)
                with by(tenant) as session:
                    assert session.get(Photo, key) is not None

            return operation

        def write() -> None:
            with kit.begin(draw.choice(place.owned)[0]) as session:
                session.add(Photo(title="new", likes=0))

        with _instead(connect, "_tune", _tune_unprepared):
            for _ in range(8 * SHARDS):  # its connections are made here
                read(unprepared.read)()
        render = PGIdentifierPreparer_psycopg._render_schema_translates
        variants = {
            "read": read(kit.read),
            "session": read(kit.session),
            "opened apart": _with(_RoutedCursor, "_execute_gen", _opened_apart, read(kit.session)),
            "rendered anew": _with(dialect._Preparer, "_render_schema_translates", render, read(kit.read)),
            "unprepared": read(unprepared.read),
            "write": write,
            "commit apart": _with(orm_session, "is_lone_insert", lambda _session: False, write),
        }
        taken = bench.interleave(variants, rounds=rounds, block=block, warmup=4 * SHARDS)
        for key, with_it, without in (
            ("read_in_autocommit", "read", "session"),
            ("begin_in_one_message", "session", "opened apart"),
            ("schema_rendered_once", "read", "rendered anew"),
            ("prepared_statements", "read", "unprepared"),
            ("commit_with_insert", "write", "commit apart"),
        ):
            bench.ratio(f"{key}{suffix}", ours=taken[with_it], other=taken[without])
        _standing(bench, kit, place, suffix=suffix, rounds=rounds, block=block)


def _standing(bench: Bench, kit: ShardKit, place: Place, *, suffix: str, rounds: int, block: int) -> None:
    """The most that connections which still stand on the right shard could bring: one tenant, and no settings at all."""
    tenant, key = place.owned[0]
    drivers = []

    def read() -> None:
        with kit.read(tenant) as session:
            assert session.get(Photo, key) is not None

    with kit.session(tenant) as session:
        driver = driver_connection(session.connection())
        driver.pgconn.exec_(f"SELECT set_config('shardkit.tenant', '{tenant}', false)".encode())
        drivers.append(driver)
    standing = _with(Opening, "send", lambda _opening, _connection: 0, read)
    taken = bench.interleave({"ours": read, "standing": standing}, rounds=rounds, block=block, warmup=block)
    drivers[0].dirty = True  # it must not serve anybody else
    bench.ratio(f"standing_could_bring{suffix}", ours=taken["standing"], other=taken["ours"])


def _with(owner: Any, name: str, replacement: Any, operation: Operation) -> Operation:
    def replaced() -> None:
        with _instead(owner, name, replacement):
            operation()

    return replaced


@contextmanager
def _instead(owner: Any, name: str, replacement: Any) -> Iterator[None]:
    """Inside the block *owner* has *replacement* where it has *name*."""
    before = getattr(owner, name)
    setattr(owner, name, replacement)
    try:
        yield
    finally:
        setattr(owner, name, before)


_execute_gen, _tune = _RoutedCursor._execute_gen, connect._tune


def _opened_apart(self: Any, query: Any, params: Any = None, **options: Any) -> Any:
    """BEGIN and the settings in a message of their own, before the statement."""
    if self._conn.leg is not None and self._conn.pending and not self._conn.every and self._conn.idle:
        yield from self._conn._open_gen()
    yield from _execute_gen(self, query, params, **options)


def _tune_unprepared(connection: Any, *arguments: Any, **options: Any) -> None:
    _tune(connection, *arguments, **options)
    connection.prepare_threshold = None
