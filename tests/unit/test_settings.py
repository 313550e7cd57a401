"""Settings are right at once or an error that says why, and their secrets show nowhere."""

from __future__ import annotations

import logging
import traceback

import pytest

from shardkit import Settings
from shardkit.core.shardmap import Server
from shardkit.db.connect import app_conninfo, conninfo
from shardkit.errors import SettingsError, ShardKitError
from shardkit.settings import Secret

URL = "postgresql://shardkit:s3cr%20et@127.0.0.1:1/catalog"
HIDDEN = ["s3cr", "et@"]


def settings(**given):
    return Settings(**{"catalog_url": URL, **given})


@pytest.mark.parametrize(
    "given",
    [
        {"catalog_url": ""},
        {"catalog_url": None},
        {"catalog_url": 5},
        {"redis_url": 5},
        {"servers": "pg1"},
        {"servers": ["pg1"]},
        {"servers": {"pg1": 5}},
        {"servers": {"PG 1": URL}},
        {"pool_size": 0},
        {"pool_size": -1},
        {"pool_size": 2.5},
        {"pool_size": "10"},
        {"pool_size": True},
        {"prepared_max": 0},
        {"pool_timeout_s": 0},
        {"pool_timeout_s": -1.0},
        {"pool_timeout_s": float("inf")},
        {"pool_timeout_s": float("nan")},
        {"pool_timeout_s": "5"},
        {"pool_timeout_s": None},
        {"poll_interval_s": 0},
        {"move_wait_s": False},
        {"pooler": "pgbouncer"},
        {"pooler": None},
        {"insecure_transport": "false"},
        {"insecure_transport": 1},
        {"application_name": 5},
        {"map_file": 5},
    ],
    ids=repr,
)
def test_a_setting_of_the_wrong_kind_is_refused(given):
    with pytest.raises(ShardKitError) as caught:
        settings(**given)
    assert not any(part in "".join(traceback.format_exception(caught.value)) for part in HIDDEN)


@pytest.mark.parametrize(
    "text",
    [
        "catalog_url = ",
        "catalog_url = 'x'\npool_sise = 3",
        "catalog_url = 'x'\nservers = 3",
        "catalog_url = 'x'\n[servers]\npg1 = 'y'",
        "catalog_url = 'x'\n[servers.pg1]\nurl = 'y'\nweight = 3",
        "catalog_url = 'x'\n[servers.pg1]\n",
        "catalog_url = 'x'\npool_size = '3'",
        "catalog_url = 'x'\ninsecure_transport = 'no'",
        "pool_size = 3",
        "\xff",
    ],
    ids=repr,
)
def test_a_bad_file_is_refused_by_name(tmp_path, text):
    file = tmp_path / "shardkit.toml"
    file.write_text(text, "latin-1")
    with pytest.raises(SettingsError):
        Settings.from_toml(file)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SettingsError, match=r"nowhere\.toml"):
        Settings.from_toml(tmp_path / "nowhere.toml")
    with pytest.raises(SettingsError, match=r"nowhere\.toml"):
        Settings.from_env({"SHARDKIT_CONFIG": str(tmp_path / "nowhere.toml")})


def test_the_environment_wins_over_the_file_and_arguments_over_both(tmp_path):
    file = tmp_path / "shardkit.toml"
    file.write_text(f"catalog_url = '{URL}'\npool_size = 3\npool_timeout_s = 1\n[servers.pg1]\nurl = 'postgresql:///x'\n")
    environ = {"SHARDKIT_CONFIG": str(file), "SHARDKIT_POOL_SIZE": "4", "SHARDKIT_INSECURE_TRANSPORT": "true"}
    found = Settings.from_env(environ, pool_timeout_s=2.5)
    assert (found.pool_size, found.pool_timeout_s, found.insecure_transport) == (4, 2.5, True)
    assert found.servers == {"pg1": "postgresql:///x"}


@pytest.mark.parametrize(("name", "text"), [("POOL_SIZE", "many"), ("POOL_TIMEOUT_S", ""), ("INSECURE_TRANSPORT", "perhaps")])
def test_a_bad_variable_is_named(name, text):
    with pytest.raises(SettingsError, match=f"SHARDKIT_{name}"):
        Settings.from_env({"SHARDKIT_CATALOG_URL": URL, f"SHARDKIT_{name}": text})


def test_an_unknown_override_is_refused():
    with pytest.raises(SettingsError, match="pool_sise"):
        Settings.from_env({"SHARDKIT_CATALOG_URL": URL}, pool_sise=3)


def test_secrets_are_not_shown():
    found = settings(redis_url="redis://:s3cr@127.0.0.1", servers={"pg1": URL})
    shown = [repr(found), str(found), f"{found!r}", repr(found.servers), repr(found.redis_url), repr(conninfo(URL, found))]
    assert not any(part in text for part in HIDDEN for text in shown)
    assert isinstance(found.catalog_url, Secret)


@pytest.mark.parametrize(
    "url", ["postgresql://u:s3cr et@127.0.0.1/x y=z", "host=127.0.0.1 password=s3cr et", "s3cr", "postgres://[s3cr"]
)
def test_an_url_that_cannot_be_parsed_is_not_quoted(url):
    with pytest.raises(SettingsError) as caught:
        conninfo(url, settings())
    assert not any(part in "".join(traceback.format_exception(caught.value)) for part in HIDDEN)


@pytest.mark.parametrize(
    ("url", "fine"),
    [
        ("postgresql://u@127.0.0.1/x", True),
        ("postgresql://u@127.9.9.9/x", True),
        ("postgresql://u@localhost/x", True),
        ("postgresql://u@[::1]/x", True),
        ("postgresql://u@%2Ftmp/x", True),
        ("postgresql:///x", True),
        ("postgresql://u@192.0.2.1/x?sslmode=verify-full", True),
        ("postgresql://u@192.0.2.1/x", False),
        ("postgresql://u@192.0.2.1/x?sslmode=require", False),
        ("postgresql://u@192.0.2.1/x?sslmode=verify-ca", False),
        ("postgresql://u@db.example/x", False),
        ("postgresql://u@127.0.0.1,192.0.2.1/x", False),
        ("postgresql://u@localhost/x?hostaddr=192.0.2.1", False),
        ("postgresql://u@localhost.example/x", False),
        ("postgresql:///x?service=elsewhere", False),
    ],
)
def test_a_host_off_loopback_needs_its_certificate_verified(url, fine):
    if fine:
        assert conninfo(url, settings())
    else:
        with pytest.raises(SettingsError, match="verify-full"):
            conninfo(url, settings())
        assert conninfo(url, settings(insecure_transport=True))


@pytest.mark.parametrize("name", ["PGHOST", "PGHOSTADDR", "PGSERVICE"])
def test_the_environment_of_libpq_does_not_lead_off_loopback(monkeypatch, name):
    monkeypatch.setenv(name, "192.0.2.1")
    with pytest.raises(SettingsError, match="verify-full"):
        conninfo("postgresql:///x", settings())


def test_a_server_off_loopback_is_refused_whoever_named_it():
    server = Server("pg1", "host=192.0.2.1 dbname=x", None)
    with pytest.raises(SettingsError, match="verify-full"):
        app_conninfo(server, settings())


def test_no_secret_in_the_log_of_a_failed_start(caplog):
    from shardkit import ShardKit

    with caplog.at_level(logging.DEBUG), pytest.raises(ShardKitError) as caught:
        ShardKit(catalog_url=URL)
    shown = "".join(traceback.format_exception(caught.value)) + caplog.text
    assert not any(part in shown for part in HIDDEN)
