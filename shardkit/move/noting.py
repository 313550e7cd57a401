"""Keeps how far a move is in the journal, once a second, so that whoever watches the cluster sees it too."""

from __future__ import annotations

import time
from typing import Final

import psycopg

from shardkit.catalog.journal import Journal
from shardkit.move.options import Progress, Report

EVERY_S: Final = 1.0
QUIET: Final = frozenset({"fence", "flip", "follow"})
"""Steps in which nothing is written that does not have to be: writers may be held off."""


class Noting:
    """A report that passes every news on, and notes some of them in the *journal*."""

    def __init__(self, report: Report, journal: Journal) -> None:
        self._report, self._journal = report, journal
        self._step, self._began_s = "", 0.0
        self._noted, self._noted_s = ("", False), 0.0

    def __call__(self, news: Progress) -> None:
        """One piece of news."""
        self._report(news)
        now = time.monotonic()
        if news.step != self._step:
            self._step, self._began_s = news.step, now
        what = (news.step, bool(news.total))  # a new step, or its size, is told at once
        if news.step in QUIET or (what == self._noted and now - self._noted_s < EVERY_S):
            return
        self._noted, self._noted_s = what, now
        known = {
            "step": news.step,
            "done": news.done,
            "total": news.total,
            "lag_ms": news.lag_ms,
            "note": news.note,
            "since_s": round(now - self._began_s, 3),
        }
        try:
            self._journal.note({"progress": known})
        except psycopg.Error:  # a catalog that is away stops the next step, not the news of this one
            return
