"""The benchmarks' streaming replica, by the name the tests know."""

from __future__ import annotations

from benchmarks.standby import Standby, make_standby

__all__ = ["Standby", "make_standby"]
