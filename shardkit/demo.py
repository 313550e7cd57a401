"""Shows shardkit at work on real servers and real data: 28,000 airports, whose tenants are their countries.

Everything here goes through the public way in: a program of yours would look like ``load`` and ``read``.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sqlalchemy import func, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from shardkit._sync.kit import ShardKit
from shardkit.core.hashing import check_shard_count
from shardkit.core.ids import unpack
from shardkit.core.shardmap import ShardMap
from shardkit.errors import BinariesMissingError, LocalClusterError, ShardKitError
from shardkit.local import LocalCluster, run_local
from shardkit.local.binaries import find_postgres, find_redis
from shardkit.local.cluster import attach, remove_data
from shardkit.orm.keys import ShardKey
from shardkit.orm.tenancy import TenantScoped
from shardkit.schema.blueprint import from_metadata
from shardkit.schema.bootstrap import initialize
from shardkit.settings import Secret, Settings

INSTALL = 'pip install "shardkit[local,demo]"'
Countries: TypeAlias = dict[str, list[dict[str, Any]]]
LOADERS = 4  # connections are few, and two cores are busy with that


class Base(DeclarativeBase):
    """A base of the demo's own, so that it does not mix with a program's models."""


class Airport(TenantScoped, Base):
    """One airport; its tenant is the country it lies in."""

    __tablename__ = "airports"
    id: Mapped[int] = mapped_column(ShardKey, primary_key=True)
    icao: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    city: Mapped[str]
    elevation: Mapped[float]


@dataclass(slots=True)
class Tour:
    """One run of the demo: where it prints, and what took how long (seconds, by step)."""

    console: Console
    took: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, title: str, *, total: int = 0) -> Iterator[Any]:
        """Time a step; gives a callable that hears how much of *total* is done."""
        bar = Progress(
            TextColumn("  {task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        began = time.perf_counter()
        with bar:
            task = bar.add_task(title.partition(" through")[0].partition(", each")[0], total=total or 1)
            yield lambda done: bar.advance(task, done)
        self.took[title] = time.perf_counter() - began
        self.console.print(f"[green]✓[/green] {title} [dim]{self.took[title]:.1f} s[/dim]", highlight=False)

    def say(self, line: str = "") -> None:
        """One line, with markup."""
        self.console.print(line, highlight=False)


def airports_by_country() -> Countries:
    """The data set; BinariesMissingError where an extra is not installed."""
    try:
        import airportsdata
    except ImportError:
        raise BinariesMissingError(f"the data set airportsdata is not installed; nothing was started. {INSTALL}") from None
    countries: Countries = {}
    for airport in airportsdata.load("ICAO").values():
        countries.setdefault(airport["country"], []).append(dict(airport))
    return countries


def run(console: Console, *, servers: int = 3, shards: int = 256, keep: Path | None = None) -> None:
    """The whole tour. *keep*: a directory in which the cluster stays, and runs on."""
    began = time.perf_counter()
    check_shard_count(shards)
    data = airports_by_country()
    try:
        find_postgres()
        find_redis()
    except BinariesMissingError as exc:
        raise BinariesMissingError(f"{exc.args[0]}. For this demo: {INSTALL}") from exc
    if keep is not None and attach(keep) is not None:
        raise LocalClusterError(
            f"a kept demo is in {keep} already; nothing was changed. `shardkit local up --data-dir {keep}` starts its servers, "
            f"`shardkit local down --purge --data-dir {keep}` removes it"
        )
    tour = Tour(console)
    tour.say("[bold]shardkit demo[/bold]: real PostgreSQL servers, real data, one tenant per country\n")
    with tour.step(f"start {servers} PostgreSQL servers and a Redis-protocol server"):
        cluster = run_local(servers=servers, data_dir=keep)
    try:
        urls = {server.name: server.url for server in cluster.servers}
        settings = Settings(catalog_url=Secret(cluster.catalog_url), servers={n: Secret(url) for n, url in urls.items()})
        with tour.step(f"make {shards} shards, each with table, index and row-level security", total=shards) as advance:
            blueprint = from_metadata(Base.metadata)
            shardmap = initialize(settings, servers=urls, shard_count=shards, blueprint=blueprint, progress=advance)
        with ShardKit(settings=settings) as kit:
            total = sum(map(len, data.values()))
            with tour.step(f"write {total:,} airports of {len(data)} tenants through routed sessions", total=total) as advance:
                load(kit, data, advance)
            show_tenants(tour, kit.map, data)
            read(tour, kit)
            intrude(tour, kit)
            count(tour, kit, expected=total)
        summary(tour, cluster, shardmap, time.perf_counter() - began, kept=keep is not None)
    except BaseException:
        cluster.down()
        if keep is not None:
            remove_data(cluster.data_dir, whole=True)
        raise
    if keep is None:
        cluster.down()


def load(kit: ShardKit, data: Countries, advance: Any) -> None:
    """Write every tenant's airports, each tenant's in one transaction on its own shard."""

    def write(country: str) -> None:
        with kit.begin(country) as session:
            session.add_all(
                Airport(icao=a["icao"], name=a["name"], city=a["city"], elevation=a["elevation"]) for a in data[country]
            )
        advance(len(data[country]))

    largest_first = sorted(data, key=lambda country: -len(data[country]))
    with ThreadPoolExecutor(LOADERS) as pool:
        list(pool.map(write, largest_first))


def show_tenants(tour: Tour, shardmap: ShardMap, data: Countries) -> None:
    """Where the largest tenants and some small ones live, and how even the servers are."""
    table = Table(box=None, pad_edge=False, padding=(0, 2), header_style="dim")
    for column in ("tenant", "airports", "shard", "schema", "server"):
        table.add_column(column, justify="right" if column in ("airports", "shard") else "left")
    for country in ["US", "BR", "DE", "IS", "TV"]:
        route = shardmap.locate(country)
        table.add_row(country, f"{len(data[country]):,}", str(route.shard), route.schema, route.server)
    tour.say("\n[bold]Where tenants live[/bold]  [dim]kit.locate(tenant): a look-up in memory[/dim]")
    tour.console.print(table)
    rows: Counter[str] = Counter()
    for country, airports in data.items():
        rows[shardmap.locate(country).server] += len(airports)
    largest = max(rows.values(), default=1)
    for name in shardmap.servers:
        bar = "█" * round(30 * rows[name] / largest)
        tour.say(f"{name:<5} {len(shardmap.shards_on(name)):>4} shards {rows[name]:>7,} rows [cyan]{bar}[/cyan]")
    share = max(map(len, data.values())) / sum(map(len, data.values()))
    tour.say(f"[dim]Shards are even, rows are not: the US alone has {share:.0%} of them.[/dim]")


def read(tour: Tour, kit: ShardKit) -> None:
    """By tenant, and by an id alone."""
    tour.say("\n[bold]Reading[/bold]")
    with kit.session("IS") as session:
        highest = session.scalars(select(Airport).order_by(Airport.elevation.desc()).limit(1)).one()
        number = session.scalar(select(func.count()).select_from(Airport))
        raw = session.scalar(text("SELECT count(*) FROM airports"))
    tour.say(f'kit.session("IS"): {number} airports, the highest is {highest.name}')
    tour.say(f"  raw SQL without a WHERE, routed and guarded all the same: {raw}")
    parts = unpack(highest.id)
    with kit.session_for_id(highest.id) as session:
        found = session.get(Airport, highest.id)
    assert found is not None
    tour.say(f"kit.session_for_id({highest.id}): {found.name}")
    tour.say(f"  the id itself says shard {parts.shard}")


def intrude(tour: Tour, kit: ShardKit) -> None:
    """What a wrong tenant gets, also one whose rows are in the very same shard."""
    here = kit.locate("US")
    stranger = next(t for t in map("guest-{}".format, range(100_000)) if kit.locate(t).shard == here.shard)
    with kit.session("US") as session:
        theirs = session.scalars(select(Airport.id).limit(1)).one()
    tour.say(f'\n[bold]A wrong tenant[/bold]  [dim]"{stranger}" shares shard {here.shard} with "US"[/dim]')
    with kit.session(stranger) as session:
        by_id, by_sql = session.get(Airport, theirs), session.scalar(text("SELECT count(*) FROM airports"))
    tour.say(f"get(Airport, id_of_us)  {by_id}")
    tour.say(f"raw SQL, no WHERE       {by_sql}")
    for title, tenant in (("kit.session()", None), ("kit.session(42)", 42)):
        try:
            kit.session(tenant)
        except ShardKitError as exc:
            reason = exc.args[0].partition(":")[0].partition(", not")[0]
            tour.say(f"{title:<24}[red]{type(exc).__name__}[/red]  {reason}")


def count(tour: Tour, kit: ShardKit, *, expected: int) -> None:
    """One query over all shards, as if they were one database."""
    tour.say()
    with tour.step(f"kit.fan_out over all {len(kit.map.placements)} shards"):
        total = kit.fan_out_scalar(select(func.count()).select_from(Airport), reduce=sum)
        highest = kit.fan_out(select(Airport.name, Airport.elevation).order_by(Airport.elevation.desc()).limit(1)).one()
    tour.say(f"  {total:,} rows, {'all there' if total == expected else f'[red]but {expected:,} were written[/red]'}")
    tour.say(f"  the highest airport of the world: {highest.name}, {highest.elevation:,.0f} ft")


def summary(tour: Tour, cluster: LocalCluster, shardmap: ShardMap, seconds: float, *, kept: bool) -> None:
    """How long it took, and how to go on."""
    size = f"{shardmap.shard_count} shards on {len(shardmap.servers)} servers"
    tour.say(f"\n[bold green]Done[/bold green] in {seconds:.1f} s: {size}.")
    if kept:
        tour.say("The cluster runs on. Try:")
        tour.say(f"  export SHARDKIT_CONFIG={cluster.settings_file}")
        tour.say("  shardkit status")
        tour.say("  shardkit locate IS")
        tour.say(f"  shardkit local down --purge --data-dir {cluster.data_dir}")
    else:
        tour.say("The servers are stopped and their data is gone. Next:")
        tour.say("  shardkit demo --keep           the same, and the cluster stays to play with")
        tour.say("  shardkit local up              servers for a program of your own")
        tour.say("  docs/tutorial/first-steps.md   from there to a first routed session")
