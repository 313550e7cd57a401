"""Begins moves and goes on with them: the journal says where, ``core.moving`` what next, a Carrier does it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

import psycopg

from shardkit.catalog import journal as book
from shardkit.catalog.journal import Journal, Move
from shardkit.catalog.rows import load_map
from shardkit.core import moving as m
from shardkit.core.moving import Step
from shardkit.db.connect import connect_admin
from shardkit.errors import (
    MoveInterruptedError,
    MoveRefusedError,
    PastNoReturnError,
    ShardKitError,
    UnknownMoveError,
    WalLimitError,
)
from shardkit.move.carrier import Carrier
from shardkit.move.isolate import begin_return
from shardkit.move.noting import Noting
from shardkit.move.options import MoveOptions, Report, silent
from shardkit.move.parting import TenantCarrier
from shardkit.move.tenantwork import TenantWork
from shardkit.move.work import Work
from shardkit.settings import Settings

Action = Literal["resume", "abort", "finish"]
Around = Callable[[m.Effect, Callable[[m.Effect], Any]], Any]
"""Does an effect by calling the second argument; tests put faults in here."""


def begin(settings: Settings, shard: int, target: str, *, options: MoveOptions | None = None) -> Move:
    """Write a move of *shard* to *target* in the journal; nothing is done yet. Raises UnknownShardError, UnknownServerError,
    MoveRefusedError, MoveBusyError.
    """
    options = options or MoveOptions()
    with connect_admin(settings.catalog_url, settings) as catalog:
        shardmap = load_map(catalog)
        place = shardmap.placement(shard)
        shardmap.server(target)
        if place.server == target:
            raise MoveRefusedError(f"shard {shard} is on server {target!r} already; nothing was done")
        return book.begin(
            catalog, shard=shard, source=place.server, target=target, epoch=place.epoch, options={"soak": options.soak}
        )


def begin_rollback(settings: Settings, move_id: int) -> Move:
    """Write the way back of a move that soaks; nothing is copied for it. Raises UnknownMoveError, MoveBusyError."""
    with connect_admin(settings.catalog_url, settings) as catalog:
        move = book.find(catalog, move_id)
        if move.step is not Step.SOAK:
            raise UnknownMoveError(
                f"move {move_id} is at step {move.step.word}: only a move that soaks can be rolled back"
                + ("; abort it instead" if move.step <= Step.FENCE else "")
                + ". Nothing was done"
            )
        if move.tenant is not None:
            return begin_return(catalog, move)
        return book.begin(
            catalog, shard=move.shard, source=move.target, target=move.source, epoch=move.epoch + 1, of_move=move.id,
            options={"soak": False},
        )  # fmt: skip


def go_on(
    settings: Settings,
    move_id: int,
    action: Action = "resume",
    *,
    options: MoveOptions | None = None,
    report: Report = silent,
    take_over: bool = False,
    around: Around = lambda effect, do: do(effect),
) -> Move:
    """Resume, abort or finish a move, until it has ended or soaks. The move as the journal then has it.

    Raises MoveError and ServerError; the journal then says where it stands, and it can be gone on with.
    """
    options = options or MoveOptions()
    with _carrier(settings, move_id, options, report, take_over=take_over) as carrier:
        move = carrier.w.journal.move
        script = _script(move, action, options)
        if script is None:
            return move
        try:
            _play(script, carrier, around)
        except (m.PastNoReturn, m.LostContact, ShardKitError) as exc:
            with contextlib.suppress(Exception):
                carrier.w.journal.note(carrier.w.facts, problem=str(exc.args[0]) if exc.args else type(exc).__name__)
            if isinstance(exc, WalLimitError) and not carrier.w.journal.move.of_move:
                _play(m.abort(carrier.w.journal.move.step), carrier, around)
                raise WalLimitError(
                    f"{exc.args[0]}. It was undone, and the WAL is free; the source never stopped serving"
                ) from exc
            if isinstance(exc, m.PastNoReturn):
                raise PastNoReturnError(
                    f"move {move_id} cannot be aborted: its fence is committed. `shardkit moves resume {move_id}` "
                    "completes it, and "
                    f"`shardkit moves rollback {move_id}` then goes back without a copy"
                ) from exc
            if isinstance(exc, m.LostContact):
                raise MoveInterruptedError(
                    f"move {move_id} was interrupted: {exc}. `shardkit moves resume {move_id}` goes on; no acknowledged "
                    "write is lost"
                ) from exc
            raise
        carrier.w.journal.note(carrier.w.facts)
        return book.find(carrier.w.journal.connection, move_id)


def _script(move: Move, action: Action, options: MoveOptions) -> m.Script | None:
    if move.step.ended:
        return None
    rollback = move.of_move is not None
    match action:
        case "abort":
            return m.abort(move.step)
        case "finish":
            if move.step not in (Step.SOAK, Step.FINISH):
                raise UnknownMoveError(
                    f"move {move.id} is at step {move.step.word}: only one that soaks can be finished; nothing was done"
                )
            return m.finish(move.step)
        case "resume":
            if move.step is Step.SOAK:
                return None
            return m.resume(
                move.step, fence=options.policy, copied=rollback, soak=bool(move.options.get("soak", True)) and not rollback
            )


def _play(script: m.Script, carrier: Carrier, around: Around) -> None:
    """Do what *script* says until it ends."""
    try:
        effect = next(script)
        while True:
            try:
                result = around(effect, carrier.do)
            except Exception as exc:  # noqa: BLE001  the script decides; what it does not know it raises again
                effect = script.throw(exc)
            else:
                effect = script.send(result)
    except StopIteration:
        return
    finally:
        script.close()


@contextlib.contextmanager
def _carrier(settings: Settings, move_id: int, options: MoveOptions, report: Report, *, take_over: bool) -> Iterator[Carrier]:
    with connect_admin(settings.catalog_url, settings) as catalog:
        journal = Journal(catalog, move_id, take_over=take_over)
        given = settings, journal, load_map(catalog), options, Noting(report, journal)
        carrier = Carrier(Work(*given)) if journal.move.tenant is None else TenantCarrier(TenantWork(*given))
        try:
            yield carrier
        finally:
            carrier.close()
            with contextlib.suppress(psycopg.Error):  # it is over with the connection too
                carrier.w.journal.let_go()
            if carrier.w.journal.connection is not catalog:
                carrier.w.journal.connection.close()
