"""Moves under load in a storm of faults, chosen by a seed: movers that die or hang, sessions that are ended, servers that
crash."""

from __future__ import annotations

import os
import random

import psycopg
import pytest

from shardkit.core import moving as m
from shardkit.errors import ShardKitError
from tests.faults.illtreat import Killed
from tests.faults.lab import Load
from tests.faults.movelab import Lab

SEED = int(os.environ.get("SHARDKIT_SEED", "1"))


class Storm:
    """Does effects, and now and then something else happens."""

    def __init__(self, lab, rng, servers):
        self.lab, self.rng, self.servers, self.log = lab, rng, servers, []

    def __call__(self, effect, do):
        faults = {"killed before": 3, "killed after": 3, "answer lost": 2, "sessions ended": 3, "crash": 1, "": 60}
        fault = self.rng.choices(list(faults), list(faults.values()))[0]
        if fault:
            self.log.append((type(effect).__name__, fault))
        match fault:
            case "killed before":
                raise Killed
            case "killed after":
                do(effect)
                raise Killed
            case "answer lost":
                do(effect)
                raise m.LostContact(fault)
            case "sessions ended":
                with self.lab.on(self.rng.choice(list(self.lab.servers))) as connection:
                    connection.execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'shardkit move %' "
                        "AND datname = current_database()"
                    )
            case "crash" if self.servers is not None:
                name = self.servers.servers[-1].name
                self.servers.kill_server(name)
                self.servers.start_server(name)
        return do(effect)


def weather(lab, rng, servers, *, lives, writers):
    """Moves with rollbacks and aborts until *lives* have ended; what the checkers say."""
    storm = Storm(lab, rng, servers)
    with Load(lab, writers=writers) as load:
        for _ in range(lives):
            load.wait_for(3 * writers)
            move = lab.begin(soak=rng.random() < 0.7)
            for attempt in range(40):
                calm = attempt > 30
                action = rng.choice(["resume", "resume", "resume", "abort"])
                try:
                    step = lab.find(move).step
                    if step.ended:
                        break
                    if step is m.Step.SOAK:
                        if move.of_move is None and rng.random() < 0.4:
                            move = lab.begin_rollback(move)
                            continue
                        action = "finish"
                    elif step is m.Step.FINISH:
                        action = "resume"
                    lab.go_on(move, action, around=(lambda effect, do: do(effect)) if calm else storm)
                except (Killed, ShardKitError, m.LostContact, psycopg.Error):
                    continue
                if move.of_move is not None and lab.find(move).step is m.Step.ABORTED:
                    move = lab.find_id(move.of_move)
            assert lab.find(move).step.ended, storm.log
        load.wait_for(3 * writers)
    if servers is not None:
        load.errors = [e for e in load.errors if getattr(e, "outcome", None) is None or e.outcome.value != "unknown"]
    return lab.complaints(load), storm.log


@pytest.fixture
def lab(local_cluster):
    with Lab.on_cluster(local_cluster) as lab:
        yield lab


def test_a_storm_under_load(lab):
    complaints, log = weather(lab, random.Random(SEED), None, lives=2, writers=4)
    assert complaints == [], f"seed {SEED}: {log}"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(SEED, SEED + 5))
def test_a_long_storm_with_crashes_of_a_server(lab, local_cluster, seed):
    complaints, log = weather(lab, random.Random(seed), local_cluster, lives=10, writers=8)
    assert complaints == [], f"seed {seed}: {log}"
