"""Gunicorn with --preload, several workers and threads: what the master opened before the fork is nobody's afterwards."""

from __future__ import annotations

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("gunicorn", reason="Gunicorn is not installed (extra: test)")
httpx = pytest.importorskip("httpx", reason="httpx is not installed (extra: test)")

from cachelab import cached_fleet_on

from shardkit import ShardKit
from tests.acceptance.program import environment

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def fleet(local_cluster):
    with cached_fleet_on(local_cluster) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def server(fleet):
    command = [sys.executable, "-m", "gunicorn", "--preload", "--workers", "2", "--threads", "4", "--bind", "127.0.0.1:0"]
    command += ["--timeout", "300"]  # a worker that a busy machine stops for half a minute is not replaced
    variables = {
        **environment(),
        "PYTHONPATH": f"{HERE.parents[1]}:{HERE}",
        "SHARDKIT_CATALOG_URL": fleet.catalog_url,
        "SHARDKIT_REDIS_URL": fleet.redis_url,
        "SHARDKIT_POLL_INTERVAL_S": "60",
    }
    said = ""
    with subprocess.Popen([*command, "gunicorn_app:app"], env=variables, stderr=subprocess.PIPE, text=True) as master:
        try:
            while "Booting worker" not in said and (line := master.stderr.readline()):
                said += line
            found = re.search(r"Listening at: (http://\S+)", said)
            assert found, said
            yield found[1]
        finally:
            master.terminate()
            said += master.communicate(timeout=120)[1]
    assert "Traceback" not in said, said


def test_workers_and_threads_never_mix_what_their_master_opened(fleet, server, eventually):
    pids = set()

    def visit(number):
        tenant = f"guni-{number}"
        with httpx.Client(base_url=server, timeout=120) as client:
            for slug in ("a", "b", "a", "b"):
                found = client.get(f"/{tenant}/{slug}").json()
                if found["stored"] is None:
                    pids.add(client.post(f"/{tenant}/{slug}").raise_for_status().json()["pid"])
                    found = client.get(f"/{tenant}/{slug}").json()
                assert found["cached"] == found["stored"] == f"{tenant} {slug}"
                pids.add(found["pid"])
            return client.get("/count").raise_for_status().json()["count"]

    with ThreadPoolExecutor(8) as pool:
        assert max(pool.map(visit, range(20))) <= 42
    with httpx.Client(base_url=server, timeout=120) as client:
        assert 41 <= client.get("/count").json()["count"] <= 42
        assert client.get("/of the master/before").json()["cached"] == "of the master"
        eventually(lambda: pids.add(fresh(server)) or len(pids) == 2)


def fresh(server):
    """Process id of a worker, met on a connection of its own."""
    return httpx.get(f"{server}/count", timeout=120).json()["pid"]


def test_workers_hear_of_a_move_by_themselves(fleet, server):
    with httpx.Client(base_url=server, timeout=120) as client:
        client.post("/mover/a").raise_for_status()
        with ShardKit(settings=fleet.settings()) as kit:
            fleet.move(kit.locate("mover"), elsewhere=False)
        for _ in range(8):
            found = client.get("/mover/a", headers={"Connection": "close"}).raise_for_status().json()
            assert found["stored"] == found["cached"] == "mover a"
