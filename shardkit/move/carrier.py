"""Does the effects of ``core.moving`` on two servers, with the catalog as the journal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shardkit.core import moving as m
from shardkit.errors import ShardKitError
from shardkit.move.building import Building
from shardkit.move.ends import contact
from shardkit.move.switching import Switching
from shardkit.move.work import Work


class Carrier:
    """One session's work on one move. ``do`` does an effect; ``close`` leaves no session behind."""

    def __init__(self, work: Work) -> None:
        self.w = work
        self._switching = Switching(work)
        self._effects: dict[type[m.Effect], Callable[[Any], Any]] = {
            m.Enter: self._enter,
            m.Expel: self._expel,
            **Building(work).effects,
            **self._switching.effects,
        }

    def do(self, effect: m.Effect) -> Any:
        """The effect's result. Raises Busy, LostContact or a ShardKitError."""
        with contact():
            return self._effects[type(effect)](effect)

    def close(self) -> None:
        """End all sessions; an open fence is rolled back by that."""
        self._switching.close()
        self.w.close()

    def _enter(self, effect: m.Enter) -> None:
        self.w.journal.enter(effect.step)
        self.w.tell(effect.step.word)

    def _expel(self, _: m.Expel) -> None:
        self.close()
        self.w.source.one("expel", session=self.w.source.session)
        try:
            self.w.target.one("expel", session=self.w.target.session)
        except ShardKitError as exc:  # what it could still do there needs a fence, and that is on the source
            self.w.tell("expel", note=str(exc))
