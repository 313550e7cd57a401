"""Begins to carry one tenant into a shard of its own, and back: what is to be done goes into the journal, like a move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from shardkit.catalog import journal as book
from shardkit.catalog.journal import Move
from shardkit.catalog.rows import load_map
from shardkit.core.carving import OURS
from shardkit.core.hashing import MAX_SHARDS, TenantKey, tenant_from_text
from shardkit.core.moving import Step
from shardkit.core.shardmap import ShardMap
from shardkit.db.connect import connect_admin
from shardkit.errors import MoveRefusedError, UnknownMoveError
from shardkit.move import tenantchecks
from shardkit.move.checks import Finding
from shardkit.move.forecast import BYTES_PER_S, COMMITS, FIXED_S, SECTION_ROUND_TRIPS, round_trip_ms
from shardkit.move.options import MoveOptions, silent
from shardkit.move.tenantwork import TenantWork
from shardkit.settings import Settings

FIRST_EPOCH = 1
"""Of a new shard while it is filled; no map names it. It opens at the next one."""


@dataclass(frozen=True, slots=True)
class IsolateForecast:
    """``rows`` and ``size`` (bytes) are the tenant's own; ``tables`` has its rows by table, ``whole`` what is copied wholly.

    ``shard`` is the one it leaves, ``into_shard`` the one it would get.
    """

    tenant: TenantKey
    shard: int
    into_shard: int
    source: str
    target: str
    epoch: int
    size: int
    rows: int
    tables: dict[str, int] = field(default_factory=dict)
    whole: tuple[str, ...] = ()
    duration_s: float = 0.0
    stall_ms: float = 0.0
    findings: tuple[Finding, ...] = ()

    @property
    def refused(self) -> bool:
        """Whether it would be refused."""
        return any(finding.refuses for finding in self.findings)


def begin_isolate(
    settings: Settings, tenant: str, target: str | None, *, whole: Sequence[str] = (), options: MoveOptions | None = None
) -> Move:
    """Write in the journal that *tenant* (as text) goes into a shard of its own on *target* (None: the server it is on).

    Nothing is done yet. Raises TenantKeyError, UnknownServerError, MoveRefusedError, MoveBusyError.
    """
    options = options or MoveOptions()
    with connect_admin(settings.catalog_url, settings) as catalog:
        shardmap = load_map(catalog)
        planned = _planned(catalog, shardmap, tenant, target, whole=whole)
        return book.begin(catalog, **{**planned, "options": {**planned["options"], "soak": options.soak}})


def begin_return(catalog: Any, move: Move) -> Move:
    """Write the way back of a tenant whose old rows are not removed yet. Raises MoveRefusedError, MoveBusyError."""
    assert move.into_shard is not None
    if move.options.get("whole"):
        raise MoveRefusedError(
            f"move {move.id} copied whole tables ({', '.join(move.options['whole'])}), and what was written to either copy "
            "since cannot be told apart: it cannot be rolled back; nothing was done"
        )
    shardmap = load_map(catalog)
    here, there = shardmap.placement(move.into_shard), shardmap.placement(move.shard)
    if (here.server, there.server, there.epoch) != (move.target, move.source, move.epoch + 1):
        raise UnknownMoveError(f"the map has changed since move {move.id}: it cannot be rolled back; nothing was done")
    return book.begin(
        catalog, shard=move.into_shard, source=here.server, target=there.server, epoch=here.epoch, of_move=move.id,
        tenant=move.tenant, into_shard=move.shard,
        options={
            "soak": False, "into_epoch": there.epoch, "pin": move.options["pin_to"], "pin_to": move.options["pin"], "whole": [],
        },
    )  # fmt: skip


def forecast(
    settings: Settings, tenant: str, target: str | None, *, whole: Sequence[str] = (), options: MoveOptions | None = None
) -> IsolateForecast:
    """Run all checks, and estimate. Changes nothing. Raises what ``begin_isolate`` raises, and ServerDownError."""
    with connect_admin(settings.catalog_url, settings) as catalog:
        shardmap = load_map(catalog)
        planned = _planned(catalog, shardmap, tenant, target, whole=whole)
        book.refuse_busy(catalog, planned["shard"])
    move = Move(id=1, step=Step.PLANNED, lease=0, of_move=None, **planned)
    work = TenantWork(settings, SimpleNamespace(move=move), shardmap, options or MoveOptions(), silent)
    try:
        site = tenantchecks.site_of(work.source, work.target, work)
        findings = tenantchecks.survey(site, work, shardmap)
        trip_ms = (round_trip_ms(work.source) + round_trip_ms(work.target)) / 2
    finally:
        work.close()
    columns = {name: column for name, column in work.share.columns.items() if name not in OURS}
    return IsolateForecast(
        tenant=work.tenant, shard=move.shard, into_shard=work.into_shard, source=move.source, target=move.target,
        epoch=move.epoch, size=site.size, rows=sum(table.rows for table in site.tables),
        tables={table.name: table.rows for table in site.tables if columns.get(table.name) is not None},
        whole=tuple(name for name, column in columns.items() if column is None),
        duration_s=FIXED_S + site.size / BYTES_PER_S, stall_ms=SECTION_ROUND_TRIPS * trip_ms + COMMITS * 1.5,
        findings=tuple(findings),
    )  # fmt: skip


def _planned(catalog: Any, shardmap: ShardMap, tenant: str, target: str | None, *, whole: Sequence[str]) -> dict[str, Any]:
    key = tenant_from_text(tenant, shardmap.tenant_type)
    route = shardmap.locate(key)
    target = target or route.server
    shardmap.server(target)
    if route.shard >= shardmap.shard_count and [t for t, s in shardmap.pins.items() if s == route.shard] == [key]:
        raise MoveRefusedError(
            f"the tenant has shard {route.shard} to itself already; nothing was done. `shardkit move {route.shard} --to "
            "SERVER` carries it elsewhere"
        )
    into = book.free_shard(catalog)
    if into >= MAX_SHARDS:
        raise MoveRefusedError(
            f"there is no number left for another shard ({MAX_SHARDS} at most: an id has 13 bits for it); nothing was done"
        )
    return {
        "shard": route.shard, "source": route.server, "target": target, "epoch": route.epoch, "tenant": str(key),
        "into_shard": into,
        "options": {"into_epoch": FIRST_EPOCH, "pin": shardmap.pins.get(key), "pin_to": into, "whole": list(whole)},
    }  # fmt: skip
