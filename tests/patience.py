"""How long a test that is not about waiting lets things take: a machine that stalls for half a minute is no fault of ours."""

from __future__ import annotations

import contextlib

import pytest

import shardkit._async.fanout
import shardkit._async.filling
import shardkit._sync.fanout
import shardkit._sync.filling
from shardkit import Settings
from shardkit.catalog import pulse, resolver
from shardkit.db import replicas

SETTINGS = {
    "connect_timeout_s": 60.0,
    "pool_timeout_s": 60.0,
    "call_timeout_s": 120.0,
    "move_wait_s": 60.0,
    "cache_timeout_s": 60.0,
    "load_interval_s": 3600.0,  # nobody tells the catalog of his load, and of how long his statements took, but who is told to
}
VARIABLES = {f"SHARDKIT_{name.upper()}": str(value) for name, value in SETTINGS.items()}
"""The same for programs of their own."""


@contextlib.contextmanager
def patience():
    """Settings wait so long unless they say otherwise; and what a test does not start does not begin by itself meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SETTINGS.items():
            patch.setitem(Settings.__init__.__kwdefaults__, name, value)
        for colour in (shardkit._async, shardkit._sync):
            patch.setattr(colour.filling, "LEASE_MS", 120_000)
        for fan_out in (shardkit._async.fanout.AsyncFanOut, shardkit._sync.fanout.FanOut):
            for asks in (fan_out.rows, fan_out.stream, fan_out.each):
                patch.setitem(asks.__kwdefaults__, "deadline_s", 200.0)
        patch.setattr(pulse, "PATIENCE_S", 60.0)
        patch.setattr(replicas, "_SILENT_AFTER", 1200)
        patch.setattr(resolver, "INTERVAL_S", 3600.0)
        yield
