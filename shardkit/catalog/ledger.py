"""The ledger of fleet migrations: one lease, one row per shard and revision, and the lock that keeps moves away."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from shardkit.core.fleet import Entry, State
from shardkit.core.moving import Step
from shardkit.core.names import FLEET_LOCK_CLASS, SHARD_LOCK_CLASS
from shardkit.db.connect import known_rows
from shardkit.errors import FleetBusyError
from shardkit.sql import statements

SQL = statements("fleet")
LEASE_WAIT_S: Final = 1.0  # the session of a runner killed just now needs a moment to end


@dataclass(frozen=True, slots=True)
class Ledger:
    """One run, on a connection that holds the lease. Its methods write; who reads uses the functions below."""

    connection: Any
    run: int
    direction: str

    def mark(self, state: State, work: Iterable[tuple[int, str]], error: str = "") -> None:
        """One *state* for many (shard, revision)."""
        shards: dict[str, list[int]] = {}
        for shard, revision in work:
            shards.setdefault(revision, []).append(shard)
        told = {"state": state.value, "direction": self.direction, "run": self.run, "error": error.replace("\0", "")[:2000]}
        for revision, of_it in shards.items():
            values = {**told, "revision": revision, "shards": _array(of_it)}
            self.connection.execute(SQL["mark"], values, prepare=False)

    def settle(self, entries: Sequence[Entry]) -> None:
        """Write down as done what a killed runner had done."""
        if entries:
            values = {"shards": _array(one.shard for one in entries), "revisions": [one.revision for one in entries]}
            self.connection.execute(SQL["settle"], values)

    def end(self, *, done: int, behind: int) -> None:
        """The run is over."""
        values = {"state": "failed" if behind else "done", "done": done, "behind": behind, "run": self.run}
        self.connection.execute(SQL["end_run"], values)

    @contextmanager
    def lease(self) -> Iterator[None]:
        """Give the lease back after the block, at once: a killed runner's goes when its session does."""
        try:
            yield
        except BaseException:  # Ctrl-C too
            if not self.connection.closed:
                self.end(done=0, behind=1)
            raise
        finally:
            if not self.connection.closed:
                self.connection.execute(SQL["give_lease"], {"lock_class": FLEET_LOCK_CLASS})


def begin(connection: Any, *, direction: str, target: str, runner: str) -> Ledger:
    """Take the lease, which lives as long as *connection*. Raises FleetBusyError while another runner has it."""
    give_up = time.monotonic() + LEASE_WAIT_S
    while not (taken := connection.execute(SQL["take_lease"], {"lock_class": FLEET_LOCK_CLASS}).fetchone()[0]):
        if time.monotonic() > give_up:
            break
        time.sleep(0.05)
    if not taken:
        row = connection.execute(SQL["lease_holder"]).fetchone()
        who = f"run {row[0]} ({row[1]}) has been migrating to {row[2]} since {row[3]:%H:%M:%S}" if row else "another run begins"
        raise FleetBusyError(f"{who}; nothing was done. `shardkit migrate status` shows how far it is")
    values = {"direction": direction, "target": target, "runner": runner}
    return Ledger(connection, connection.execute(SQL["begin_run"], values).fetchone()[0], direction)


def read_ledger(connection: Any) -> Mapping[tuple[int, str], Entry]:
    """Rows that are not done, by (shard, revision); none in a catalog that is older than the ledger."""
    rows = known_rows(connection, SQL["ledger"])
    return {(row[0], row[1]): Entry(row[0], row[1], State(row[2]), *row[3:]) for row in rows}


def last_runs(connection: Any) -> list[dict[str, Any]]:
    """The newest runs, newest first."""
    columns = ("run", "direction", "target", "runner", "state", "begun_at", "ended_at", "shards_done", "shards_behind")
    return [dict(zip(columns, row, strict=True)) for row in known_rows(connection, SQL["last_runs"])]


def hold_shards(connection: Any, shards: Sequence[int]) -> set[int]:
    """Hold *shards* against moves as long as *connection* lives; gives those that no move holds."""
    values = {"shards": _array(shards), "lock_class": SHARD_LOCK_CLASS}
    return {row[0] for row in connection.execute(SQL["hold_shards"], values)}


def let_go(connection: Any, shards: Iterable[int]) -> None:
    """Let held shards go; a connection that is gone holds none."""
    if not connection.closed:
        connection.execute(SQL["let_go"], {"shards": _array(shards), "lock_class": SHARD_LOCK_CLASS})


class OpenMove(NamedTuple):
    """A move that is not over, and the step it is at."""

    id: int
    step: str

    @property
    def soaks(self) -> bool:
        """Whether its shard is open where it went, and its old copy only follows."""
        return self.step == Step.SOAK.word

    @property
    def text(self) -> str:
        """Why its shard has to wait, and for what."""
        if self.soaks:
            return (
                f"move {self.id} soaks, and its old copy, which follows row by row, would break: finish it "
                f"(`shardkit moves finish {self.id}`, or --finish-soaks), then run this again"
            )
        return f"move {self.id} is at step {self.step}: run this again when it is over"


def moving_shards(connection: Any, shards: Sequence[int]) -> dict[int, OpenMove]:
    """Which of *shards* have a move that is not over, also if nobody works on it now."""
    return {row[0]: OpenMove(*row[1:]) for row in known_rows(connection, SQL["moving"], {"shards": _array(shards)})}


def _array(shards: Iterable[int]) -> str:
    """Numbers as PostgreSQL writes an array: the driver takes a list element by element, and that was a tenth of our time."""
    return f"{{{','.join(map(str, shards))}}}"
