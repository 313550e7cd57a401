"""Pauses a move's reading of the source while that has too much to do, as ``core.easing`` judges."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from shardkit.core.easing import Limits, SourceLoad
from shardkit.move.ends import SQL, End
from shardkit.move.options import Progress

LOOK_EVERY_S: Final = 0.25


class Easing:
    """``ease`` returns when the source may be read on. Asks it every quarter of a second, on a session of its own."""

    def __init__(self, source: End, limits: Limits, *, paused: Callable[[Progress, str], object]) -> None:
        self._source, self._limits, self._paused = source, limits, paused
        self._pulse = SourceLoad(limits)
        self._looked = 0.0
        self.paused_s = 0.0

    def ease(self, progress: Progress) -> None:
        """Wait while there is a reason to; *paused* hears of it at each look, and may raise to give up."""
        if not self._limits.any or time.monotonic() - self._looked < LOOK_EVERY_S:
            return
        while (reason := self._look()) is not None:
            self._paused(progress, reason)
            time.sleep(LOOK_EVERY_S)
            self.paused_s += LOOK_EVERY_S

    def _look(self) -> str | None:
        connection = self._source.on("pulse")
        row = connection.execute(SQL["pulse"], {"session": self._source.session}).fetchone()
        assert row is not None
        standbys = {name: int(replayed) for name, replayed in connection.execute(SQL["standbys"])}
        self._looked = time.monotonic()
        return self._pulse.reason(self._looked, int(row[0]), standbys, row[1])
