"""What may happen to the process that moves a shard: it is killed, hears nothing, or hangs, at the effect a test names."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

import psycopg
import pytest

from shardkit.catalog import journal
from shardkit.core import moving as m
from shardkit.core.names import schema_name
from shardkit.db.connect import connect_admin
from shardkit.errors import (
    MoveBusyError,
    MoveInterruptedError,
    NotEqualError,
    PastNoReturnError,
    ShardKitError,
    UnknownMoveError,
)

FAULTS = ("kill before", "kill after", "error", "hang")


class Killed(BaseException):
    """As if the process had ended here."""


class Hit:
    """Does effects, and ill-treats the one with number *at*."""

    def __init__(self, at, fault):
        self.at, self.fault, self.count, self.hit = at, fault, 0, None
        self.hanging, self.woken = threading.Event(), threading.Event()

    def __call__(self, effect, do):
        self.count += 1
        if self.count != self.at + 1:
            return do(effect)
        self.hit = effect
        if self.fault == "kill before":
            raise Killed
        if self.fault == "error":
            raise m.LostContact("planted")
        if self.fault == "hang":
            self.hanging.set()
            assert self.woken.wait(200)
            return do(effect)
        do(effect)
        raise Killed


def ill_treat(lab, move, at, fault, *, then, action="resume"):
    """*move* is hit, and then gone on with, or aborted where that is possible. The move as it ended."""
    hit, outcome = Hit(at, fault), []

    def first():
        try:
            outcome.append(lab.go_on(move, action, around=hit))
        except (Exception, Killed) as exc:
            outcome.append(exc)

    if fault == "hang":
        operator = threading.Thread(target=first, daemon=True)
        operator.start()
        while not hit.hanging.wait(0.01) and operator.is_alive():
            pass
        if hit.hanging.is_set():
            with pytest.raises(MoveBusyError, match="take-over"):
                lab.go_on(move)
            end(lab, move, then, take_over=True)
            hit.woken.set()
            operator.join(200)
            assert isinstance(outcome[0], ShardKitError | m.LostContact | psycopg.Error), f"not stopped: {outcome[0]!r}"
        operator.join(200)
    else:
        first()
    end(lab, move, then)
    ended = lab.find(move)
    assert ended.step.ended, f"{ended.step} after {fault} at {hit.hit}"
    return ended


def end(lab, move, then, **more):
    try:
        lab.go_on(move, then, **more)
    except (PastNoReturnError, MoveInterruptedError, UnknownMoveError):
        lab.go_on(move, **more)
    if lab.find(move).step in (m.Step.SOAK, m.Step.FINISH):
        lab.go_on(move, "finish")


def kill_mover(lab, move, at):
    """Go on with *move* in a process of its own that SIGKILL ends before its effect number *at*."""
    command = [sys.executable, "-c", MOVER, lab.settings.catalog_url, str(move.id), str(at)]
    done = subprocess.run(command, timeout=200, check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    pause, deadline = threading.Event(), time.monotonic() + 60
    with connect_admin(lab.settings.catalog_url, lab.settings) as catalog:  # its session ends a moment after it
        while catalog.execute(journal.SQL["holder"], {"id": move.id}).fetchone() is not None:
            assert time.monotonic() < deadline, "the session of the killed mover does not end"
            pause.wait(0.01)


MOVER = """
import os, signal, sys
from shardkit import Settings
from shardkit.move import run
left = int(sys.argv[3])
def around(effect, do):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return do(effect)
run.go_on(Settings(catalog_url=sys.argv[1]), int(sys.argv[2]), around=around)
"""


def just_before(kind, act):
    """For ``around``: *act* before each effect of *kind*."""

    def around(effect, do):
        if isinstance(effect, kind):
            act()
        return do(effect)

    return around


def stall_once(lab, move, eventually):
    """Does nothing until the server has ended the fence of *move*, whose budget is over; the first time it is called."""
    fence = """SELECT FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE datname = current_database() AND granted
               AND locktype = 'relation' AND mode = 'ExclusiveLock' AND application_name LIKE 'shardkit move %'"""
    late = []

    def stall():
        if not late:
            late.append(1)
            with lab.on(move.source) as connection:
                eventually(lambda: connection.execute(fence).fetchone() is None)

    return stall


def copy_refuses(lab, move, insert):
    """Somebody's own *insert* on the copy, once it is whole; the move goes on to its soak all the same."""
    refused = []

    def write():
        with (
            lab.on(move.target) as connection,
            pytest.raises(psycopg.errors.ReadOnlySqlTransaction, match="is the copy") as said,
        ):
            connection.execute(insert)
        refused.append(said.value)

    assert lab.go_on(move, around=just_before(m.Verify, write)).step is m.Step.SOAK
    assert len(refused) == 1


def forged_row_is_found(lab):
    """A row is changed on the target behind a mover's back: the move is refused its fence, and can be aborted."""
    move = lab.begin()

    def forge():
        with lab.on(move.target) as connection:
            connection.execute("SET session_replication_role = replica")
            connection.execute(f"UPDATE {schema_name(0, move.epoch)}.tokens SET what = 'forged' WHERE id = 7")

    with pytest.raises(NotEqualError, match="tokens: the row with key 7"):
        lab.go_on(move, around=just_before(m.Verify, forge))
    assert lab.go_on(move, "abort").step is m.Step.ABORTED
