"""The doctor finds what is wrong with shards: each fault is planted on real servers, found, and gone when it is mended."""

from __future__ import annotations

import contextlib

import pytest
from doctorlab import found, only
from fleet import Order, fleet_on
from psycopg import sql

from shardkit import ShardKit
from shardkit.catalog import changes
from shardkit.catalog.journal import begin
from shardkit.core.moving import Step
from shardkit.core.names import schema_name
from shardkit.doctor import diagnose
from shardkit.errors import SettingsError
from shardkit.move import isolate, run


@pytest.fixture(autouse=True, scope="module")
def orders(fleet):
    with ShardKit(settings=fleet.settings()) as kit:
        for number in range(40):
            with kit.begin(f"doctor-{number}") as session:
                session.add(Order(note=f"order {number}"))


@pytest.fixture
def route(fleet, tenant):
    return fleet.map.locate(tenant)


@contextlib.contextmanager
def planted(fleet, server, do, undo):
    """A fault: *do* for the block, then *undo*; each is SQL text, composed, or several."""
    with fleet.admin(server) as connection:
        for statement in do if isinstance(do, list) else [do]:
            connection.execute(statement)
        try:
            yield
        finally:
            for statement in undo if isinstance(undo, list) else [undo]:
                connection.execute(statement)


def on(text, *names):
    return sql.SQL(text).format(*(sql.Identifier(*name) if isinstance(name, tuple) else sql.Identifier(name) for name in names))


def test_a_sound_cluster_has_no_findings(fleet):
    assert found(fleet) == []


def test_an_unknown_check_is_refused():
    from shardkit.doctor import chosen

    with pytest.raises(SettingsError, match="row-security"):
        chosen(["nonsense"])
    assert "rows" not in chosen(skip=["rows"])
    assert chosen(["rows"]) == ("rows",)


@pytest.mark.parametrize(
    ("do", "undo", "says"),
    [
        ("ALTER TABLE {} DISABLE ROW LEVEL SECURITY", "ALTER TABLE {} ENABLE ROW LEVEL SECURITY", "is not in force"),
        ("DROP POLICY shardkit_tenant ON {}", "SELECT 1", "has not the policy"),
        (
            "ALTER POLICY shardkit_tenant ON {} USING (tenant_id = current_setting('shardkit.tenant') OR true)",
            "SELECT 1",
            "has not the policy",
        ),
        ("ALTER POLICY shardkit_tenant ON {} WITH CHECK (true)", "SELECT 1", "has not the policy"),
        ("CREATE POLICY friendly ON {} USING (true)", "DROP POLICY friendly ON {}", "the policy friendly"),
        ("ALTER TABLE {} OWNER TO shardkit_app", "ALTER TABLE {} OWNER TO CURRENT_USER", "is not in force"),
    ],
)
def test_a_table_that_is_not_protected(fleet, route, do, undo, says):
    table = (route.schema, "orders")
    with planted(fleet, route.server, on(do, table), on(undo, table)):
        texts = [what for check, where, what in found(fleet, "row-security") if where == route.server]
        assert [text for text in texts if says in text and f"{route.schema}.orders" in text], texts
    with fleet.admin(route.server) as connection:
        connection.execute("SELECT shardkit.protect(%s::regclass)", (f"{route.schema}.orders",))
    assert found(fleet, "row-security", "roles") == []


def test_a_view_that_shows_every_tenants_rows(fleet, route):
    view = (route.schema, "all_orders")
    make = on("CREATE VIEW {} AS SELECT * FROM {}", view, (route.schema, "orders"))
    with planted(fleet, route.server, make, on("DROP VIEW {}", view)):
        assert "all_orders" in only(found(fleet, "row-security"))
        with fleet.admin(route.server) as connection:
            connection.execute(on("ALTER VIEW {} SET (security_invoker = true)", view))
        assert found(fleet, "row-security") == []


@pytest.mark.parametrize(
    ("do", "undo", "says"),
    [
        ("ALTER ROLE shardkit_app BYPASSRLS", "ALTER ROLE shardkit_app NOBYPASSRLS", "bypasses row-level security"),
        ("ALTER ROLE shardkit_app SUPERUSER", "ALTER ROLE shardkit_app NOSUPERUSER", "is a superuser"),
        ("GRANT shardkit_operator TO shardkit_app", "REVOKE shardkit_operator FROM shardkit_app", "is a member of"),
        ("ALTER ROLE shardkit_operator LOGIN", "ALTER ROLE shardkit_operator NOLOGIN", "may log in"),
    ],
)
def test_a_role_with_too_much_power(fleet, do, undo, says):
    with planted(fleet, "pg1", do, undo):
        assert says in only([one for one in found(fleet, "roles") if one[1] == "pg1"])


def test_a_role_that_owns_tables(fleet, route):
    table = (route.schema, "orders")
    take, give = on("ALTER TABLE {} OWNER TO shardkit_app", table), on("ALTER TABLE {} OWNER TO CURRENT_USER", table)
    with planted(fleet, route.server, take, give):
        assert "owns 1 tables" in only(found(fleet, "roles"))


def test_rows_in_the_wrong_shard(fleet, route):
    stranger = next(f"stranger-{n}" for n in range(100) if fleet.map.shard_of(f"stranger-{n}") != route.shard)
    orders = (route.schema, "orders")
    add = sql.SQL("INSERT INTO {} (id, tenant_id, note) VALUES (1, {}, 'lost')").format(sql.Identifier(*orders), stranger)
    with planted(fleet, route.server, add, on("DELETE FROM {} WHERE id = 1", orders)):
        text = only(found(fleet, "rows"))
        assert text.startswith(f"1 rows of {route.schema}.orders")
        assert stranger not in text  # whose rows they are is nobody's business here
        with fleet.admin() as catalog:  # a pin says that they are right there
            changes.pin(catalog, stranger, route.shard)
        assert found(fleet, "rows") == []
        with fleet.admin() as catalog:
            changes.pin(catalog, stranger, None)


def test_rows_of_a_tenant_that_was_pinned_away(fleet):
    home = fleet.map.locate("doctor-1")
    with fleet.admin() as catalog:
        changes.pin(catalog, "doctor-1", (home.shard + 1) % 16)
    try:
        assert only(found(fleet, "rows")).startswith(f"1 rows of {home.schema}.orders")
    finally:
        with fleet.admin() as catalog:
            changes.pin(catalog, "doctor-1", None)


def test_a_large_table_is_sampled_and_says_so(fleet, route):
    orders = (route.schema, "orders")
    stranger = next(f"stranger-{n}" for n in range(100) if fleet.map.shard_of(f"stranger-{n}") != route.shard)
    fill = sql.SQL("INSERT INTO {} (id, tenant_id, note) SELECT n, {}, 'many ' || n FROM generate_series(1, 2000) n").format(
        sql.Identifier(*orders), stranger
    )
    pretend = sql.SQL("UPDATE pg_class SET reltuples = 100000, relpages = 20 WHERE oid = {}::regclass").format(
        f"{route.schema}.orders"
    )
    # An autovacuum in between would put the true number there.
    keep, let = (
        on("ALTER TABLE {} " + change, orders) for change in ("SET (autovacuum_enabled = off)", "RESET (autovacuum_enabled)")
    )
    clear = [on("DELETE FROM {} WHERE id <= 2000", orders), on("VACUUM ANALYZE {}", orders), let]
    with planted(fleet, route.server, [keep, fill, "SET allow_system_table_mods = on", pretend], clear):
        sampled, whole = only(found(fleet, "rows")), only(found(fleet, "rows", thorough=True))
        assert "(in a sample)" in sampled
        assert whole.startswith("2000 rows")


def test_a_table_that_takes_too_long_is_named(fleet, route):
    with fleet.admin(route.server) as other:
        with other.transaction():
            other.execute(on("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE", (route.schema, "orders")))
            said = only(found(fleet, "rows", row_timeout_s=2.0))  # a stall may add other tables
            assert "could not be read to the end in time" in said
            assert f"{route.schema}.orders" in said


def test_a_schema_that_no_map_names(fleet, route):
    elsewhere = fleet.other(route.server)
    with planted(fleet, elsewhere, on("CREATE SCHEMA {}", route.schema), on("DROP SCHEMA {}", route.schema)):
        assert route.schema in only(found(fleet, "schemas"))


def test_a_shard_that_is_missing(fleet, route):
    gone = schema_name(route.shard, 900)
    away, back = on("ALTER SCHEMA {} RENAME TO {}", route.schema, gone), on("ALTER SCHEMA {} RENAME TO {}", gone, route.schema)
    with planted(fleet, route.server, away, back):
        texts = [what for _, _, what in found(fleet, "schemas")]
        assert len(texts) == 2
        assert f"1 shards of the map are missing: {route.schema}" in texts


def test_a_copy_that_takes_writes(local_cluster):
    with fleet_on(local_cluster, shard_count=4) as fleet:
        route = fleet.map.route(1)
        target = fleet.other(route.server)
        fleet.copy(route, target)  # at the next epoch, as a move that was forgotten would leave it
        assert "takes writes in" in only(found(fleet, "copies"))
        copy = schema_name(route.shard, route.epoch + 1)
        with fleet.admin() as catalog:  # a move that has just begun does not guard its target yet
            move = begin(catalog, shard=route.shard, source=route.server, target=target, epoch=route.epoch)
            assert found(fleet, "copies") == []
            catalog.execute("UPDATE shardkit_catalog.moves SET step = 'verify' WHERE id = %s", (move.id,))
            assert "takes writes in" in only(found(fleet, "copies"))
        with fleet.admin(target) as connection:
            guard_all(connection, copy)
            assert found(fleet, "copies") == []
            connection.execute(on("ALTER TABLE {} DISABLE TRIGGER shardkit_refuse_writes", (copy, "orders")))
            assert "takes writes in 1 tables" in only(found(fleet, "copies"))


def test_moves_and_isolates_that_soak_or_have_ended_are_no_findings(local_cluster):
    with fleet_on(local_cluster, shard_count=4) as fleet:
        settings = fleet.settings()
        with ShardKit(settings=settings) as kit:
            for number in range(12):
                with kit.begin(f"t{number}") as session:
                    session.add(Order(note=f"order {number}"))
        there = fleet.map.route(1).server
        for move in (
            run.begin(settings, 1, fleet.other(there)),
            isolate.begin_isolate(settings, "t3", fleet.other(fleet.map.locate("t3").server)),
        ):
            assert run.go_on(settings, move.id).step is Step.SOAK
            assert found(fleet) == []
            assert run.go_on(settings, move.id, "finish").step is Step.FINISHED
            assert found(fleet) == []


def guard_all(connection, schema):
    connection.execute(
        "CREATE OR REPLACE FUNCTION shardkit.refuse_writes() RETURNS trigger LANGUAGE plpgsql AS "
        "$$BEGIN RAISE 'no writes'; END$$"
    )
    tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = %s", (schema,)).fetchall()
    for (table,) in tables:
        connection.execute(
            on(
                "CREATE OR REPLACE TRIGGER shardkit_refuse_writes BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON {} "
                "FOR EACH STATEMENT EXECUTE FUNCTION shardkit.refuse_writes()",
                (schema, table),
            )
        )


def test_a_live_shard_that_refuses_writes(local_cluster):
    with fleet_on(local_cluster, shard_count=4) as fleet:
        route = fleet.map.route(2)
        with fleet.admin(route.server) as connection:
            guard_all(connection, route.schema)
        assert "the live copy of shard 2, refuse writes" in only(found(fleet, "copies"))


def test_a_shard_without_its_furniture(local_cluster):
    with fleet_on(local_cluster, shard_count=4) as fleet:
        route = fleet.map.route(0)
        with fleet.admin(route.server) as connection:
            connection.execute(on("DROP TABLE {}", (route.schema, "shardkit_claims")))
            connection.execute(on("DROP FUNCTION {}.next_id() CASCADE", route.schema))
        text = only(found(fleet, "furniture"))
        assert text == f"1 shards lack next_id(), shardkit_claims: {route.schema}"


def test_functions_that_are_missing_are_made_again(local_cluster):
    from shardkit.doctor import fix, plan_fixes

    with fleet_on(local_cluster, shard_count=4) as fleet:
        with fleet.admin("pg2") as connection:
            connection.execute("DROP FUNCTION shardkit.wait_replayed, shardkit.protect")
        diagnosis = diagnose(fleet.settings(), checks=["furniture"])
        assert [(one.where, one.what) for one in diagnosis.findings] == [
            ("pg2", "the functions protect, wait_replayed are missing")
        ]
        assert [one.where for one in plan_fixes(diagnosis)] == ["pg2"]
        fix(fleet.settings(), diagnosis)
        assert found(fleet, "furniture") == []
