"""What a move would be like before it is begun: what speaks against it, its size, its time, its stall."""

from __future__ import annotations

import time
from dataclasses import dataclass

from shardkit.catalog import journal
from shardkit.catalog.rows import load_map
from shardkit.core.names import session_name
from shardkit.db.connect import connect_admin, server_url
from shardkit.errors import MoveRefusedError
from shardkit.move.checks import Finding, site_of, survey
from shardkit.move.ends import End
from shardkit.move.options import MoveOptions
from shardkit.settings import Settings

BYTES_PER_S = 40e6
"""What a copy with its indexes and its comparison carries on modest hardware (measured 50 to 75 MB/s for the rows alone)."""
FIXED_S = 0.6
SECTION_ROUND_TRIPS = 12
COMMITS = 4


@dataclass(frozen=True, slots=True)
class Forecast:
    """``size`` in bytes without indexes; ``stall_ms`` is what the fence will hold writers off for if no transaction is in
    its way.
    """

    shard: int
    source: str
    target: str
    epoch: int
    size: int
    rows: int
    tables: int
    duration_s: float
    stall_ms: float
    findings: tuple[Finding, ...]

    @property
    def refused(self) -> bool:
        """Whether the move would be refused."""
        return any(finding.refuses for finding in self.findings)


def forecast(settings: Settings, shard: int, target: str, *, options: MoveOptions | None = None) -> Forecast:
    """Run all checks, and estimate. Changes nothing. Raises UnknownShardError, UnknownServerError, MoveRefusedError,
    MoveBusyError, ServerDownError.
    """
    with connect_admin(settings.catalog_url, settings) as catalog:
        shardmap = load_map(catalog)
        journal.refuse_busy(catalog, shard)
    place = shardmap.placement(shard)
    shardmap.server(target)
    if place.server == target:
        raise MoveRefusedError(f"shard {shard} is on server {target!r} already; nothing was done")
    source, target_end = (
        End(name, server_url(shardmap.server(name), settings), settings, session=session_name(shardmap.cluster_id, 0))
        for name in (place.server, target)
    )
    ends = (source, target_end)
    try:
        site = site_of(source, target_end, shard, place.epoch, options or MoveOptions())
        findings = survey(site, shardmap)
        trip_ms = sum(round_trip_ms(end) for end in ends) / 2
    finally:
        for end in ends:
            end.close()
    return Forecast(
        shard=shard,
        source=place.server,
        target=target,
        epoch=place.epoch,
        size=site.size,
        rows=sum(table.rows for table in site.tables),
        tables=len(site.tables),
        duration_s=FIXED_S + site.size / BYTES_PER_S,
        stall_ms=SECTION_ROUND_TRIPS * trip_ms + COMMITS * 1.5,
        findings=tuple(findings),
    )


def round_trip_ms(end: End) -> float:
    """Milliseconds of a question to *end*."""
    began = time.monotonic()
    for _ in range(5):
        end.on().execute("SELECT 1")
    return (time.monotonic() - began) * 200
