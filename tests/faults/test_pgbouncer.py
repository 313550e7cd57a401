"""Behind PgBouncer in transaction mode: tenants of different shards share one backend, and nothing of one reaches another."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import threading

import psycopg
import pytest
from fleet import Order, fleet_on
from pooler import LOGIN, needs_pgbouncer, pgbouncer
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import select, text

from shardkit import AsyncShardKit, ShardKit
from shardkit.errors import SessionError, SettingsError

pytestmark = needs_pgbouncer
STATEMENTS = 2_000
EVERY_WRITE = 10
_numbers = itertools.count()


@pytest.fixture(scope="module")
def fleet(local_cluster):
    with fleet_on(local_cluster) as fleet:
        with fleet.admin("pg1") as server:
            _make_login(server, "GRANT shardkit_app, shardkit_operator TO {}")
        yield fleet
        with fleet.admin("pg1") as server:
            server.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(LOGIN)))


def _make_login(server, grant):
    login = sql.Identifier(LOGIN)
    server.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(login))
    server.execute(sql.SQL("CREATE ROLE {} LOGIN NOSUPERUSER").format(login))
    server.execute(sql.SQL(grant).format(login))


@pytest.fixture
def pooled(fleet):
    """Settings of a program that reaches pg1 through PgBouncer."""
    with pgbouncer(fleet.servers["pg1"]) as at:
        yield lambda **given: fleet.settings(
            servers={"pg1": at(given.pop("login", LOGIN))}, **{"pooler": "pgbouncer-transaction", **given}
        )


@pytest.fixture
def tenants(fleet):
    """Two tenants of two shards of the first server, and one more in the shard of the first; nobody had them before."""
    on_pg1 = (name for n in _numbers if fleet.map.locate(name := f"pooled-{n}").server == "pg1")
    one = next(on_pg1)
    other = next(name for name in on_pg1 if fleet.map.shard_of(name) != fleet.map.shard_of(one))
    return one, other, next(name for name in on_pg1 if fleet.map.shard_of(name) == fleet.map.shard_of(one))


def owner(fleet):
    """The superuser of the first server."""
    return conninfo_to_dict(fleet.servers["pg1"])["user"]


def fill(fleet, tenants, rows=5):
    with ShardKit(settings=fleet.settings()) as kit:
        for tenant in tenants:
            with kit.begin(tenant) as session:
                session.add_all(Order(note=f"{tenant} {number}") for number in range(rows))


def strangers(notes, tenant):
    """How many of *notes* are not the tenant's; finding none of one's own is as wrong."""
    return sum(not note.startswith(f"{tenant} ") for note in notes) or int(not notes)


def in_threads(work, tenants):
    """Sum of ``work(tenant)`` with a thread for each."""
    found, errors = [], []

    def run(tenant):
        try:
            found.append(work(tenant))
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=run, args=(tenant,)) for tenant in tenants]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return sum(found)


@pytest.fixture(params=[STATEMENTS, pytest.param(10_000, marks=pytest.mark.slow)])
def statements(request):
    return request.param


def test_threads_of_two_shards_on_one_backend_read_their_own_rows_only(fleet, pooled, tenants, statements):
    fill(fleet, tenants)
    with ShardKit(settings=pooled()) as kit:

        def work(tenant):
            wrong = 0
            for number in range(statements // len(tenants)):
                if number % EVERY_WRITE == 0:
                    with kit.begin(tenant) as session:
                        session.add(Order(note=f"{tenant} w{number}"))
                    continue
                way = kit.read if number % 3 else kit.session
                with way(tenant) as session:
                    raw = number % 2  # without WHERE: only row-level security and the path keep it apart
                    query = text("SELECT note FROM orders ORDER BY id LIMIT 8") if raw else select(Order.note).limit(8)
                    wrong += strangers(session.scalars(query).all(), tenant)
            return wrong

        assert in_threads(work, tenants) == 0
    for tenant in tenants:  # and every write is where it belongs
        assert fleet.count(kit, tenant) == 5 + len(range(0, statements // len(tenants), EVERY_WRITE))


def test_tasks_of_two_shards_on_one_backend_read_their_own_rows_only(fleet, pooled, tenants, statements):
    fill(fleet, tenants)

    async def main():
        async with AsyncShardKit(settings=pooled()) as kit:

            async def work(tenant):
                wrong = 0
                for number in range(statements // len(tenants)):
                    if number % EVERY_WRITE == 0:
                        async with kit.begin(tenant) as session:
                            session.add(Order(note=f"{tenant} w{number}"))
                        continue
                    way = kit.read if number % 3 else kit.session
                    async with way(tenant) as session:
                        raw = number % 2
                        query = text("SELECT note FROM orders ORDER BY id LIMIT 8") if raw else select(Order.note).limit(8)
                        wrong += strangers((await session.scalars(query)).all(), tenant)
                return wrong

            return sum(await asyncio.gather(*map(work, tenants)))

    assert asyncio.run(main()) == 0


def test_the_same_with_session_level_set_reads_strangers_rows(fleet, pooled, tenants):
    # The planted fault: what the two tests above would see if anything were set outside a transaction.
    fill(fleet, tenants)
    url = pooled().servers["pg1"]
    start = threading.Barrier(2)
    with ShardKit(settings=fleet.settings()) as kit:
        schemas = {tenant: kit.locate(tenant).schema for tenant in tenants}

    def work(tenant):
        with psycopg.connect(url, autocommit=True, prepare_threshold=None) as connection:
            connection.execute("SELECT set_config('role', 'shardkit_app', false)")
            connection.execute(
                "SELECT set_config('search_path', %s, false), set_config('shardkit.tenant', %s, false)",
                (schemas[tenant], tenant),
            )
            start.wait(200)
            return sum(
                strangers([note for (note,) in connection.execute("SELECT note FROM orders")], tenant) for _ in range(200)
            )

    assert in_threads(work, tenants[:2]) >= 200


def test_an_operator_sees_the_shard_and_the_next_tenant_still_only_his_own(fleet, pooled, tenants):
    fill(fleet, tenants)
    one, _, neighbour = tenants
    with ShardKit(settings=pooled(pool_size=1)) as kit:
        for _ in range(3):
            with kit.shard(kit.locate(one).shard).session() as session:
                found = {note.split(" ")[0] for note in session.scalars(text("SELECT note FROM orders"))}
                assert {one, neighbour} <= found
            with kit.read(one) as session:
                assert strangers(session.scalars(text("SELECT note FROM orders")).all(), one) == 0


def test_what_changes_the_session_is_refused(pooled, tenants):
    with ShardKit(settings=pooled()) as kit, kit.session(tenants[0]) as session:
        for statement in ("SET search_path TO public", "SELECT pg_advisory_lock(1)", "CREATE TEMP TABLE t (a int)"):
            with pytest.raises(SessionError, match="behind a pooler"):
                session.execute(text(statement))
        session.execute(text("SET LOCAL statement_timeout TO '1s'"))
        assert session.scalar(text("SHOW statement_timeout")) == "1s"


@pytest.mark.parametrize("ignored", ["extra_float_digits", "options"])
def test_a_pooler_nobody_named_is_found_out_before_anything_is_read(fleet, tenants, ignored):
    with pgbouncer(fleet.servers["pg1"], ignored=ignored) as at:
        for login in (LOGIN, owner(fleet)):
            with ShardKit(settings=fleet.settings(servers={"pg1": at(login)})) as kit, kit.read(tenants[0]) as session:
                with pytest.raises(SettingsError, match='pooler = "pgbouncer-transaction"'):
                    session.scalars(select(Order.note)).all()


def test_a_pooler_that_hides_the_role_too_is_found_out(fleet, tenants):
    # The login has the role and the empty path by itself, so that only the backend's process id tells.
    with fleet.admin("pg1") as server, pgbouncer(fleet.servers["pg1"], ignored="options") as at:
        server.execute(sql.SQL("ALTER ROLE {} SET role TO shardkit_app").format(sql.Identifier(LOGIN)))
        try:
            with ShardKit(settings=fleet.settings(servers={"pg1": at()})) as kit, kit.read(tenants[0]) as session:
                with pytest.raises(SettingsError, match="pools connections"):
                    session.scalars(select(Order.note)).all()
        finally:
            server.execute(sql.SQL("ALTER ROLE {} RESET role").format(sql.Identifier(LOGIN)))


def test_a_login_with_too_much_power_is_refused(fleet, pooled, tenants):
    with ShardKit(settings=pooled(login=owner(fleet))) as kit, kit.read(tenants[0]) as session:
        with pytest.raises(SettingsError, match="too powerful"):
            session.scalars(select(Order.note)).all()


def test_the_map_is_polled_where_the_catalog_is_behind_the_pooler(fleet, pooled, tenants, eventually):
    # LISTEN through a transaction pooler would listen on a backend that belongs to everybody.
    listeners = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%%' AND datname = current_database()"
    with fleet.admin() as catalog, pgbouncer(fleet.catalog_url) as at:
        eventually(lambda: catalog.execute(listeners).fetchone() == (0,))  # of other tests' kits
        settings = pooled(poll_interval_s=0.2)
        with ShardKit(settings=dataclasses.replace(settings, catalog_url=at(owner(fleet)))) as kit:
            route = kit.locate(tenants[1])
            fleet.move(route, elsewhere=False)
            eventually(lambda: kit.locate(tenants[1]).epoch == route.epoch + 1)
            assert catalog.execute(listeners).fetchone() == (0,)
            with kit.session(tenants[1]) as session:
                assert session.scalars(select(Order.note)).all() is not None
