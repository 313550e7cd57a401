"""What may be changed from the page: moves, each carried out by a thread of this process and written in the journal as ever."""

from __future__ import annotations

import logging
import threading
from typing import Final

from shardkit.catalog import journal
from shardkit.catalog.overview import opened
from shardkit.errors import ShardKitError, UnknownMoveError
from shardkit.move import run
from shardkit.settings import Settings

log = logging.getLogger("shardkit.dashboard")
ACTIONS: Final = ("resume", "abort", "rollback", "finish")


class Actions:
    """Begins moves and goes on with them; what becomes of them is in the journal, and so on the page."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def begin(self, shard: int, target: str) -> int:
        """Move *shard* to server *target*; gives the move. Raises UnknownShardError, UnknownServerError, MoveBusyError."""
        move = run.begin(self._settings, shard, target)
        self._carry(move.id, "resume")
        return move.id

    def act(self, move_id: int, action: str) -> int:
        """Do one of ACTIONS with a move; gives the move that is then under way. Raises UnknownMoveError, MoveBusyError."""
        with opened(self._settings) as catalog:
            found = journal.find(catalog, move_id)
        if found.step.ended:
            raise UnknownMoveError(f"move {move_id} has ended; nothing was done")
        if action == "rollback":
            move_id = run.begin_rollback(self._settings, move_id).id
        self._carry(move_id, "resume" if action == "rollback" else action)
        return move_id

    def _carry(self, move_id: int, action: str) -> None:
        threading.Thread(target=self._go_on, args=(move_id, action), name=f"shardkit-move-{move_id}", daemon=True).start()

    def _go_on(self, move_id: int, action: run.Action) -> None:
        try:
            run.go_on(self._settings, move_id, action)
        except ShardKitError as exc:
            log.warning("move %s: %s", move_id, exc)
