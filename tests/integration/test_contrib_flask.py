"""A Flask application over its test client: every request gets its own tenant's rows, or an answer that tells nothing."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest

flask = pytest.importorskip("flask", reason="Flask is not installed (extra: test)")

from fleet import Order
from sqlalchemy import select, text

from shardkit import ShardKit as Kit
from shardkit.contrib.flask import ShardKit, from_header, from_host, from_login, from_path
from shardkit.core.lag import Position
from shardkit.core.token import Token, seal, token_key
from shardkit.errors import (
    CommitUnknownError,
    DeadlineError,
    PoolTimeoutError,
    ServerDownError,
    SessionError,
    SettingsError,
    ShardMovedError,
)

NEVER_SAID = "another tenant's name"
ERRORS = {
    "moved": ShardMovedError(NEVER_SAID),
    "down": ServerDownError(NEVER_SAID),
    "busy": PoolTimeoutError(NEVER_SAID),
    "late": DeadlineError(NEVER_SAID),
    "unknown": CommitUnknownError(NEVER_SAID),
    "wrong": SessionError(NEVER_SAID),
}


def patient(fleet, **given):
    """Settings for a machine that has more to do: a 503 in these tests is never one of a busy machine."""
    return fleet.settings(**{"pool_timeout_s": 120, "connect_timeout_s": 120, "call_timeout_s": 120, **given})


@pytest.fixture
def opened():
    kits = []
    yield kits
    for kit in kits:
        kit.close()


@pytest.fixture
def app_of(fleet, opened):
    def make(resolver=None, settings=None, **options):
        kit = Kit(settings=settings or patient(fleet))
        opened.append(kit)
        return build(ShardKit(tenant=resolver or from_header("X-Tenant"), kit=kit, **options))

    return make


def build(shards):
    app = flask.Flask("shop")
    app.config["SECRET_KEY"] = "of these tests"
    shards.init_app(app)

    @app.post("/orders/<note>")
    def add(note):
        shards.session.add(Order(note=note))
        if note == "twice":
            shards.session.add(Order(note=note))
        if note != "forgotten":
            shards.session.commit()
        return {"added": note}

    @app.get("/orders")
    def listed():
        return list(shards.read.scalars(select(Order.note).order_by(Order.id)))

    @app.get("/raw")
    def raw():
        assert shards.session is shards.session
        notes = shards.session.scalars(text("SELECT note FROM orders ORDER BY id"))
        return [shards.session.tenant, shards.kit.current_tenant, list(notes)]

    @app.get("/other/<name>")
    def other(name):
        with shards.kit.read(name) as theirs:
            return list(theirs.scalars(select(Order.note)))

    @app.get("/of/<tenant>")
    def of(tenant):
        return str(shards.read.tenant)

    @app.get("/public")
    @shards.no_tenant
    def public():
        return str(shards.kit.current_tenant)

    @app.get("/public/wrong")
    @shards.no_tenant
    def public_wrong():
        return str(shards.session.tenant)

    @app.get("/both")
    @shards.tenant_optional
    def both():
        return str(shards.kit.current_tenant)

    @app.get("/raises/<name>")
    def raises(name):
        shards.session.scalar(text("SELECT 1"))
        raise ERRORS[name]

    @app.get("/in/<tenant>")
    @shards.no_tenant
    def log_in(tenant):
        flask.session["tenant"] = tenant
        return "in"

    app.shards = shards
    return app


def of(tenant):
    return {"X-Tenant": tenant}


def test_threads_of_many_tenants_never_mix(app_of):
    app = app_of()

    def visit(tenant):
        client = app.test_client()
        for number in range(2):
            assert client.post(f"/orders/{tenant}-{number}", headers=of(tenant)).status_code == 200
            session_tenant, current, notes = client.get("/raw", headers=of(tenant)).json
            assert session_tenant == current == tenant
            assert notes == [f"{tenant}-{n}" for n in range(number + 1)]
        return client.get("/orders", headers=of(tenant)).json

    tenants = [f"flask-{number}" for number in range(40)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(visit, tenants)) == [[f"{t}-0", f"{t}-1"] for t in tenants]
    assert app.shards._ready.current_tenant is None


def test_what_was_not_committed_is_rolled_back(app_of, tenant):
    client = app_of().test_client()
    assert client.post("/orders/forgotten", headers=of(tenant)).status_code == 200
    assert client.get("/orders", headers=of(tenant)).json == []


def test_a_failed_commit_is_never_answered_with_success(app_of, tenant):
    client = app_of().test_client()
    assert client.post("/orders/twice", headers=of(tenant)).status_code == 500
    assert client.get("/orders", headers=of(tenant)).json == []


def test_no_tenant_is_400_and_a_key_that_cannot_be_is_404_in_the_same_words(app_of):
    client = app_of().test_client()
    missing, empty = client.get("/orders"), client.get("/orders", headers=of(""))
    assert missing.status_code == empty.status_code == 400
    assert missing.data == empty.data
    numbers = app_of(from_header("X-Tenant", kind=int)).test_client()
    wrong, other_type = numbers.get("/orders", headers=of("acme")), numbers.get("/orders", headers=of("7"))
    assert wrong.status_code == other_type.status_code == 404
    assert wrong.data == other_type.data == client.get("/nowhere").data


def test_exempt_views_ask_nobody(app_of, tenant):
    client = app_of().test_client()
    assert client.get("/public").text == "None"
    assert client.get("/public", headers=of(tenant)).text == "None"
    assert client.get("/public/wrong", headers=of(tenant)).status_code == 400
    assert client.get("/both").text == "None"
    assert client.get("/both", headers=of(tenant)).text == tenant
    assert client.options("/orders").status_code == 200
    assert client.get("/static/nothing.css").status_code == 404


def test_another_tenant_cannot_be_asked_for_in_a_request(app_of, neighbours):
    one, other = neighbours
    client = app_of().test_client()
    client.post("/orders/secret", headers=of(other))
    stolen = client.get(f"/other/{other}", headers=of(one))
    assert stolen.status_code == 500
    assert "secret" not in stolen.text
    assert client.get(f"/other/{other}", headers=of(other)).json == ["secret"]
    assert app_of(lock=False).test_client().get(f"/other/{other}", headers=of(one)).json == ["secret"]


@pytest.mark.parametrize(
    ("name", "status"), [("moved", 503), ("down", 503), ("busy", 503), ("late", 503), ("unknown", 500), ("wrong", 500)]
)
def test_errors_become_answers_that_tell_nothing(app_of, tenant, name, status):
    answer = app_of().test_client().get(f"/raises/{name}", headers=of(tenant))
    assert answer.status_code == status
    assert NEVER_SAID not in answer.text
    assert answer.headers.get("Retry-After") == ("1" if status == 503 else None)


def test_the_pages_of_errors_are_the_applications_own(app_of, tenant):
    app = app_of()
    app.register_error_handler(503, lambda error: (f"come back: {error.description}", 503, {"Retry-After": "9"}))
    answer = app.test_client().get("/raises/moved", headers=of(tenant))
    assert answer.text == "come back: Not available just now. Nothing was changed."


def test_a_shard_that_is_moving_is_503_until_the_map_says_where_it_went(fleet, app_of, tenant):
    app = app_of(settings=patient(fleet, move_wait_s=0.2))
    client = app.test_client()
    assert client.post("/orders/before", headers=of(tenant)).status_code == 200
    route = fleet.map.locate(tenant)
    fleet.close_epoch(route)
    moving = client.get("/orders", headers=of(tenant))
    assert (moving.status_code, moving.headers["Retry-After"]) == (503, "1")
    fleet.flip(route)
    assert client.get("/orders", headers=of(tenant)).json == ["before"]


def test_a_dead_server_is_503_for_its_tenants_only(fleet, app_of):
    on = {name: next(t for t in map(str, range(1000)) if fleet.map.locate(t).server == name) for name in fleet.servers}
    dead = {"pg2": "postgresql://postgres@127.0.0.1:1/nowhere"}
    client = app_of(settings=dataclasses.replace(patient(fleet), servers=dead)).test_client()
    gone = client.get("/orders", headers=of(on["pg2"]))
    assert (gone.status_code, gone.headers["Retry-After"]) == (503, "1")
    assert client.get("/orders", headers=of(on["pg1"])).status_code == 200
    assert client.get("/healthz").status_code == 200


def test_the_tenant_of_a_path_a_host_a_login_or_a_decorated_resolver(fleet, app_of, opened):
    assert app_of(from_path("tenant")).test_client().get("/of/acme").text == "acme"
    by_host = app_of(from_host("example.com")).test_client()
    assert by_host.get("/of/x", base_url="http://acme.example.com:8000").text == "acme"
    for host in ("example.com", "a.b.example.com", "evilexample.com", ".example.com", "acme.example.com.evil"):
        assert by_host.get("/of/x", headers={"Host": host}).status_code == 400, host
    by_login = app_of(from_login()).test_client()
    assert by_login.get("/of/x").status_code == 400
    by_login.get("/in/ann")
    assert by_login.get("/of/x", headers=of("bob")).text == "ann"  # a forged header says nothing to an app with log-ins
    by_login.set_cookie("session", "forged.cookie.here")
    assert by_login.get("/of/x").status_code == 400
    kit = Kit(settings=patient(fleet))
    opened.append(kit)
    shards = ShardKit(kit=kit)
    app = build(shards)
    assert app.test_client().get("/orders").status_code == 500  # nobody said who a request is for

    @shards.tenant_resolver
    def who(request):
        return request.args["as"]

    assert app.test_client().get("/of/x?as=carl").text == "carl"


@pytest.fixture
def with_replica(fleet, app_of, tenant):
    """An app whose tenant's server has a replica, by the map; nothing reads from it here."""
    app = app_of()
    kit = app.shards._ready
    server = kit.map.servers[kit.locate(tenant).server]
    replicas = {**kit.map.servers, server.name: dataclasses.replace(server, replicas=("postgresql://127.0.0.1:1/x",))}
    kit._router.watch.map = dataclasses.replace(kit.map, servers=replicas)
    return app


def test_a_write_gives_a_cookie_that_reads_honour_and_a_read_gives_none(with_replica, fleet, tenant):
    client = with_replica.test_client()
    assert client.get("/orders", headers=of(tenant)).headers.get("Set-Cookie") is None
    cookie = client.post("/orders/one", headers=of(tenant)).headers["Set-Cookie"]
    assert cookie.startswith("shardkit_after=")
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    kit = with_replica.shards._ready
    with kit.read(tenant, replica=True, token=cookie.partition("=")[2].partition(";")[0]) as session:
        assert session.scalars(select(Order.note)).all() == ["one"]
    assert client.get("/orders", headers=of(tenant)).json == ["one"]


def test_without_replicas_nobody_is_asked_for_a_token(app_of, tenant):
    assert app_of().test_client().post("/orders/one", headers=of(tenant)).headers.get("Set-Cookie") is None


@pytest.mark.parametrize("forged", ["", "x", "A" * 47, "another cluster's"])
def test_a_damaged_or_forged_cookie_is_dropped(with_replica, tenant, forged):
    if forged.startswith("another"):
        forged = seal(Token(1, 1, Position(1, 7)), token_key(uuid4(), None))
    client = with_replica.test_client()
    client.set_cookie("shardkit_after", forged)
    answer = client.get("/orders", headers=of(tenant))
    assert answer.status_code == 200
    if forged:
        assert "shardkit_after=;" in answer.headers["Set-Cookie"]


def test_a_cookie_from_before_a_move_leads_to_the_primary(with_replica, fleet, tenant):
    client = with_replica.test_client()
    client.post("/orders/before", headers=of(tenant))
    fleet.move(with_replica.shards._ready.locate(tenant), elsewhere=False)
    assert client.get("/orders", headers=of(tenant)).json == ["before"]


def test_settings_come_from_the_configuration_and_the_kit_is_made_when_first_used(fleet, tenant, monkeypatch, tmp_path):
    monkeypatch.setenv("SHARDKIT_CATALOG_URL", "postgresql://127.0.0.1:1/nowhere")
    app = flask.Flask("configured")
    app.config.update(SHARDKIT_CATALOG_URL=fleet.catalog_url, SHARDKIT_POOL_SIZE=3, SHARDKIT_HEALTH_URL="/alive")
    shards = ShardKit(app, tenant=from_header("X-Tenant"))
    mounted = app.extensions["shardkit"]
    assert (mounted.settings.pool_size, mounted._kit) == (3, None)
    try:
        assert app.test_client().get("/alive").json == {"status": "ok", "map_version": mounted.kit.map.version}
        assert app.test_client().get("/healthz").status_code == 404
        with app.app_context():
            assert shards.kit is mounted.kit
    finally:
        mounted.close()
    file = tmp_path / "shardkit.toml"
    file.write_text('catalog_url = "postgresql://127.0.0.1:1/file"\npool_size = 4\n', "utf-8")
    monkeypatch.delenv("SHARDKIT_CATALOG_URL")
    other = flask.Flask("file")
    other.config["SHARDKIT_CONFIG"] = file
    ShardKit(other)
    assert other.extensions["shardkit"].settings.pool_size == 4
    other.config["SHARDKIT_POOL_SIEZ"] = 5
    with pytest.raises(SettingsError, match="SHARDKIT_POOL_SIEZ"):
        ShardKit(other)


def test_a_process_without_a_map_is_not_healthy():
    app = flask.Flask("lost")
    app.config.update(SHARDKIT_CATALOG_URL="postgresql://127.0.0.1:1/nowhere", SHARDKIT_CONNECT_TIMEOUT_S=0.5)
    ShardKit(app, tenant=from_header("X-Tenant"))
    answer = app.test_client().get("/healthz")
    assert (answer.status_code, answer.json) == (503, {"status": "no shard map"})
    assert app.test_client().get("/healthz", headers=of("x")).status_code == 503


def test_outside_a_request_there_is_no_session_of_one(app_of):
    app = app_of()
    with app.app_context(), pytest.raises(SessionError, match="outside a request"):
        _ = app.shards.session
    with flask.Flask("bare").app_context(), pytest.raises(SettingsError, match="init_app"):
        _ = app.shards.kit


def test_flask_shardkit_runs_with_the_settings_of_the_application(fleet, tenant):
    from shardkit.cli.flask import shardkit

    app = flask.Flask("commanded")
    app.config["SHARDKIT_CATALOG_URL"] = fleet.catalog_url
    ShardKit(app, tenant=from_header("X-Tenant"))
    app.cli.add_command(shardkit)  # what the entry point flask.commands does where shardkit is installed
    runner = app.test_cli_runner()
    done = runner.invoke(args=["shardkit", "locate", tenant])
    assert done.exit_code == 0, done.output
    assert f"{fleet.map.locate(tenant).shard}" in done.output
    assert "migrate" in runner.invoke(args=["shardkit", "--help"]).output
    bare = flask.Flask("bare")
    bare.cli.add_command(shardkit)
    refused = bare.test_cli_runner().invoke(args=["shardkit", "status"])
    assert refused.exit_code == 2
    assert "init_app" in refused.output
