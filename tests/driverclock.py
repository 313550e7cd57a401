"""The clock by which the driver times statements, in a test's hand: a busy machine has slow statements of its own."""

from __future__ import annotations

import contextlib

import pytest

from shardkit.db import dialect


class Clock:
    """Every statement takes a millisecond, or what a block says."""

    def __init__(self):
        self.now_s, self.each_s = 0.0, 0.001

    def __call__(self):
        self.now_s += self.each_s
        return self.now_s

    @contextlib.contextmanager
    def taking(self, each_s):
        """Statements of the block take so long."""
        before, self.each_s = self.each_s, each_s
        yield
        self.each_s = before


@contextlib.contextmanager
def driver_clock():
    """The driver's clock, until the end of the block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dialect, "perf_counter", clock := Clock())
        yield clock
