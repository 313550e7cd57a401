"""The journal of moves: each step is written before it is taken, each object before it is made, by one operator at a time.

Who works on a move holds an advisory lock in the catalog, which ends with its connection (killed, it is free at once; stopped,
it is not), and a lease number, which every write to the journal compares.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, NamedTuple

from shardkit.core.moving import Step
from shardkit.core.names import SHARD_LOCK_CLASS, schema_name
from shardkit.db.connect import instead_of, transaction
from shardkit.errors import CatalogError, LeaseLostError, MapConflictError, MoveBusyError, UnknownMoveError
from shardkit.sql import statements

SQL = statements("moves")
LET_GO_S = 0.5


@dataclass(frozen=True, slots=True)
class Move:
    """One move as the journal knows it. ``of_move``: the move it rolls back. ``tenant``: an isolate carries it to
    ``into_shard``.
    """

    id: int
    shard: int
    source: str
    target: str
    epoch: int
    of_move: int | None
    tenant: str | None
    into_shard: int | None
    step: Step
    lease: int
    options: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None
    holder: str = ""
    created_at: datetime | None = None
    updated_at: datetime | None = None


class MoveObject(NamedTuple):
    """Something a move made on a server."""

    move_id: int
    server: str
    kind: str
    name: str


def begin(
    connection: Any,
    *,
    shard: int,
    source: str,
    target: str,
    epoch: int,
    of_move: int | None = None,
    tenant: str | None = None,
    into_shard: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> Move:
    """Write a new move. Raises MoveBusyError where the shard has one that has not ended."""
    if not connection.execute(SQL["has_moves"]).fetchone()[0]:
        raise CatalogError("this catalog was made by an older release and has no journal of moves: upgrade it first")
    busy = _busy(shard)
    given = {"of_move": of_move, "tenant": tenant, "into_shard": into_shard, "options": json.dumps(dict(options or {}))}
    with (
        instead_of({"moves_one_a_shard": busy, "moves_one_rollback": busy, "moves_one_into_shard": busy}),
        transaction(connection),
    ):
        row = connection.execute(
            SQL["create_move"], {"shard": shard, "source": source, "target": target, "epoch": epoch, **given}
        ).fetchone()
        if connection.execute(SQL["entangled"], {"id": row[0]}).fetchone()[0]:
            raise busy
    return find(connection, row[0])


def free_shard(connection: Any) -> int:
    """Number of the next shard of a tenant's own. Raises CatalogError for a catalog of an older release."""
    if not connection.execute(SQL["carries_tenants"]).fetchone()[0]:
        raise CatalogError("this catalog was made by an older release and cannot say that a tenant moves: upgrade it first")
    return int(connection.execute(SQL["free_shard"]).fetchone()[0])


def moves(connection: Any, *, ended: bool = False) -> list[Move]:
    """Moves that have not ended, or all of them, the newest first."""
    if not connection.execute(SQL["has_moves"]).fetchone()[0]:
        return []
    return [_move(row) for row in connection.execute(SQL["moves"], {"id": None, "all": ended})]


def find(connection: Any, move_id: int) -> Move:
    """The move called *move_id*. Raises UnknownMoveError."""
    rows = connection.execute(SQL["moves"], {"id": move_id, "all": True}).fetchall()
    if not rows:
        raise UnknownMoveError(f"there is no move {move_id}; `shardkit moves list --all` shows them")
    return _move(rows[0])


def steps(connection: Any, move_id: int) -> list[tuple[str, int, datetime]]:
    """The journal of one move: step, number of the session, time."""
    return [(step, lease, at) for step, lease, at in connection.execute(SQL["steps"], {"id": move_id})]


def made(connection: Any, move_id: int) -> list[MoveObject]:
    """What a move has made and not dropped yet."""
    return [MoveObject(*row) for row in connection.execute(SQL["objects"], {"id": move_id, "inherited": False})]


def busy_shards(connection: Any) -> frozenset[int]:
    """Shards with a move that has not ended: what changes their tables has to wait."""
    if not connection.execute(SQL["has_moves"]).fetchone()[0]:
        return frozenset()
    return frozenset(row[0] for row in connection.execute(SQL["busy_shards"]))


def refuse_busy(connection: Any, shard: int) -> None:
    """Raise MoveBusyError where *shard* has a move that has not ended."""
    if shard in busy_shards(connection):
        raise _busy(shard)


def _busy(shard: int) -> MoveBusyError:
    return MoveBusyError(f"shard {shard} has a move that has not ended; nothing was done. `shardkit moves list` shows it")


class Journal:
    """The right to work on one move, for as long as *connection* lives. Writes raise LeaseLostError once it is another's."""

    def __init__(self, connection: Any, move_id: int, *, take_over: bool = False, lease: int | None = None) -> None:
        self.connection = connection
        if not self._held(move_id):
            self._refuse_or_end(move_id, take_over=take_over)
        known = find(connection, move_id)
        if lease is not None and known.lease != lease:
            raise LeaseLostError
        for shard in (known.shard, known.into_shard):
            given = {"lock_class": SHARD_LOCK_CLASS, "shard": shard}
            if shard is not None and not connection.execute(SQL["hold_shard"], given).fetchone()[0]:
                raise MoveBusyError(
                    f"a migration of shard {shard} is under way; nothing was done. When it has ended: "
                    f"`shardkit moves resume {move_id}`"
                )
        holder = f"{socket.gethostname()} pid {os.getpid()}"
        row = connection.execute(SQL["take_lease"], {"id": move_id, "holder": holder}).fetchone()
        self.move = find(connection, move_id)
        self._lease = row[0]

    def _held(self, move_id: int) -> bool:
        """Whether we hold the move now. A session that has just ended lets it go a moment later, so this asks for that long."""
        give_up = time.monotonic() + LET_GO_S
        while not self.connection.execute(SQL["hold"], {"id": move_id}).fetchone()[0]:
            if time.monotonic() > give_up:
                return False
            time.sleep(0.02)
        return True

    def _refuse_or_end(self, move_id: int, *, take_over: bool) -> None:
        held = self.connection.execute(SQL["holder"], {"id": move_id}).fetchone()
        if not take_over:
            who = f" ({find(self.connection, move_id).holder}, since {held[2]:%H:%M:%S})" if held else ""
            raise MoveBusyError(
                f"another operator works on move {move_id}{who}; nothing was done. If it hangs: `shardkit moves resume "
                f"{move_id} --take-over`"
            )
        if held:
            self.connection.execute(SQL["end_holder"], {"pid": held[0]})
        if not self._held(move_id):
            raise MoveBusyError(f"move {move_id} could not be taken over: its operator's session did not end; nothing was done")

    def regained(self, connection: Any) -> Journal:
        """The same right on a new *connection*, unless somebody has had it in between: then LeaseLostError, for they may have
        ended the move, and it must not begin anew.
        """
        return Journal(connection, self.move.id, lease=self._lease)

    def let_go(self) -> None:
        """The next one may work on the move now."""
        self.connection.execute(SQL["let_go"])

    @property
    def ours(self) -> dict[str, int]:
        """What every write is bound to."""
        return {"id": self.move.id, "lease": self._lease}

    def enter(self, step: Step) -> None:
        """Write that *step* begins."""
        with transaction(self.connection):
            self._entered(step)
            if step is Step.FINISHED:
                self.connection.execute(SQL["end_original"], {"id": self.move.id})

    def warm_up(self) -> None:
        """Do on this connection what ``flip`` will do, for a lease that nobody has: clients wait for what comes next."""
        with transaction(self.connection):
            self.connection.execute(SQL["flip"], {**self.ours, "lease": -1, "step": Step.FOLLOW.word}, prepare=True)

    def flip(self) -> None:
        """Send the shard (or the tenant) to the move's target, with step FOLLOW, in one commit; fine if it is there already.

        Raises MapConflictError, with nothing changed, where the map names another place.
        """
        move = self.move
        given: dict[str, Any] = {**self.ours, "step": Step.FOLLOW.word}
        name, arrived = "flip", (move.target, move.epoch + 1)
        if move.tenant is not None:
            epoch, rows = move.options["into_epoch"], schema_name(move.shard, move.epoch + 1)
            given |= {key: move.options[key] for key in ("pin", "pin_to", "into_epoch")} | {"rows": rows}
            name, arrived = "flip_tenant", (move.target, epoch + 1)
        if self.connection.execute(SQL[name], given, prepare=True).fetchone() is not None:
            self.move = replace(move, step=Step.FOLLOW)
        elif self.placement(move.into_shard) == arrived:
            self.enter(Step.FOLLOW)
        else:
            self._still_ours()
            raise MapConflictError(
                f"the catalog no longer has shard {move.shard} on {move.source!r} at epoch {move.epoch} (was it "
                "restored from an "
                f"older backup?): the shard is whole on {move.target!r} at epoch {move.epoch + 1}; the catalog was not changed"
            )

    def placement(self, shard: int | None = None) -> tuple[str, int] | None:
        """Where the catalog says *shard* (None: the move's) is: server, epoch. None where it has no such shard."""
        row = self.connection.execute(SQL["placement"], {"shard": self.move.shard if shard is None else shard}).fetchone()
        return None if row is None else (row[0], row[1])

    def note(self, facts: Mapping[str, Any], *, problem: str | None = None) -> None:
        """Keep figures, or say what went wrong."""
        self.connection.execute(SQL["note"], {**self.ours, "facts": json.dumps(dict(facts)), "problem": problem})

    def register(self, server: str, kind: str, name: str) -> None:
        """Remember an object before it is made."""
        found = {**self.ours, "server": server, "kind": kind, "name": name}
        if (
            not self.connection.execute(SQL["register"], found).rowcount
            and find(self.connection, self.move.id).lease != self._lease
        ):
            raise LeaseLostError

    def objects(self, *, inherited: bool = False) -> list[MoveObject]:
        """What this move has made, in the order in which it can be dropped; *inherited*: and the move it rolls back."""
        rows = self.connection.execute(SQL["objects"], {"id": self.move.id, "inherited": inherited})
        return [MoveObject(*row) for row in rows]

    def gone(self, found: MoveObject) -> None:
        """An object was dropped."""
        self.connection.execute(SQL["gone"], found._asdict())

    def _still_ours(self) -> None:
        if find(self.connection, self.move.id).lease != self._lease:
            raise LeaseLostError

    def _entered(self, step: Step) -> None:
        given = {**self.ours, "step": step.word, "ended": step.ended}
        if self.connection.execute(SQL["enter"], given).rowcount != 1:
            raise LeaseLostError
        self.move = find(self.connection, self.move.id)


def _move(row: Any) -> Move:
    values = list(row)
    values[8] = Step.of(values[8])
    return Move(*values)
