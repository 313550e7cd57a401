"""What the tests of the doctor share: one look at a fleet, and findings by check."""

from __future__ import annotations

from shardkit.core.health import CHECKS
from shardkit.doctor import diagnose

QUIET = ("standby", "durability")  # a local cluster for tests has no standbys, and no fsync


def found(fleet, *checks, **given):
    """Findings of *checks* (all but QUIET), as (check, where, what)."""
    settings = fleet.settings(**{"poll_interval_s": 0.2, **given.pop("settings", {})})
    wanted = checks or [name for name in CHECKS if name not in QUIET]
    return [(one.check, one.where, one.what) for one in diagnose(settings, checks=wanted, **given).findings]


def only(findings):
    """The single finding's text."""
    assert len(findings) == 1, findings
    return findings[0][2]
