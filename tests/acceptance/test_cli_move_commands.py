"""A move in a terminal: stopped with Ctrl-C, gone on with, and what it says at its end."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys

import psycopg
from locallab import at_work

from shardkit.catalog.overview import current_map
from shardkit.schema.blueprint import Blueprint
from shardkit.schema.bootstrap import initialize
from shardkit.settings import Settings
from tests.acceptance.program import PROGRAM, ROOT, environment, run, settings_file

TABLES = "CREATE TABLE things (id bigint PRIMARY KEY); INSERT INTO things SELECT generate_series(1, 2000)"


def heeds_ctrl_c():
    """A shell that runs us in the background has SIGINT ignored, and a child would inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def stopped_while_it_copies(databases, config, source, *command):
    """What a command said that was stopped with Ctrl-C while its move waited for a busy source, and that move's number."""
    command = [*command, "--yes", "--json", "--max-source-load", "0", "--config", str(config)]
    with psycopg.connect(databases.servers[source], autocommit=True) as busy, at_work(busy), subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env=environment(), preexec_fn=heeds_ctrl_c,  # noqa: PLW1509  no threads are in its way
    ) as process:  # fmt: skip
        for line in process.stdout:
            if "at work on the source (limit 0)" in line:
                break
        else:
            raise AssertionError(process.stderr.read())
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=200)
    assert process.returncode == 130, said
    return said, json.loads(line)["move"]


def test_ctrl_c_stops_a_move_and_resume_goes_on(shardkit_databases, tmp_path):
    databases = shardkit_databases(2)
    config = settings_file(tmp_path / "shardkit.toml", databases)
    settings = Settings(catalog_url=databases.catalog_url)
    source = initialize(settings, servers=databases.servers, shard_count=1, blueprint=Blueprint(TABLES)).placement(0).server
    target = next(name for name in databases.servers if name != source)
    said, number = stopped_while_it_copies(databases, config, source, "move", "0", "--to", target)
    assert f"stopped; nothing is lost. Go on: shardkit moves resume {number}" in said
    done = run("moves", "resume", number, "--config", config)
    assert f"move {number} is at step soak" in done.stderr
    assert re.search(r"held off for [\d.]+ ms at most \(predicted [\d.]+\)", done.stderr)
    assert current_map(settings).placement(0).server == target
    run("moves", "finish", number, "--yes", "--config", config)
    assert json.loads(run("moves", "list", "--json", "--config", config).stdout) == []


def test_ctrl_c_stops_a_drain_where_it_is(shardkit_databases, tmp_path):
    databases = shardkit_databases(2)
    config = settings_file(tmp_path / "shardkit.toml", databases)
    settings = Settings(catalog_url=databases.catalog_url)
    initialize(settings, servers=databases.servers, shard_count=4, blueprint=Blueprint(TABLES))
    said, number = stopped_while_it_copies(databases, config, "pg1", "drain", "pg1")
    assert "stopped; nothing is lost. `shardkit moves list` shows what is to be gone on with" in said
    (left,) = json.loads(run("moves", "list", "--json", "--config", config).stdout)
    assert (left["id"], left["step"]) == (number, "copy")
    run("drain", "pg1", "--yes", "--config", config, code=3)  # the rest, and it names this one
    run("moves", "resume", number, "--config", config)
    assert current_map(settings).shards_on("pg1") == []
