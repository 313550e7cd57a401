"""How long a real cluster of four PostgreSQL servers and Redis takes to come up and go, and 256 shards to be made on it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from time import perf_counter
from typing import Final, Literal

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy.orm import Mapped, mapped_column

from benchmarks.harness import Bench
from shardkit import Settings, ShardedBase, ShardKey, TenantScoped
from shardkit.local import LocalCluster, run_local
from shardkit.local.databases import fresh_databases
from shardkit.local.keeper import processes
from shardkit.schema.blueprint import from_metadata
from shardkit.schema.bootstrap import initialize

QUESTION: Final = "How fast does a local cluster come up, cold and warm, and how much memory does it hold?"
SERVERS: Final = 4
TMPFS: Final = Path("/dev/shm")
SPACE: Final = 1 << 30
COPY: Final = "shardkit_bench_copy"


class Made(ShardedBase):
    """Its own metadata, apart from other models of the process."""

    __abstract__ = True
    metadata = type(ShardedBase.metadata)()


class Photo(TenantScoped, Made):
    """A table as programs have them, with an index."""

    __tablename__ = "photos"
    id: Mapped[int] = mapped_column(ShardKey, primary_key=True)
    title: Mapped[str] = mapped_column(index=True)


class Like(TenantScoped, Made):
    """And a second one."""

    __tablename__ = "likes"
    id: Mapped[int] = mapped_column(ShardKey, primary_key=True)
    photo: Mapped[int] = mapped_column(index=True)


def run(bench: Bench) -> None:
    rounds = bench.pick(full=9, quick=3)
    parent = _tmpfs()
    bench.params |= {"servers": SERVERS, "redis": True, "tmpfs": parent is not None}
    if parent is None:
        bench.skip("tmpfs", "no writable tmpfs with 1 GiB free: these times are those of a disk, the goals are not")
    cold: list[float] = []
    warm: list[float] = []
    down: list[float] = []
    memory: list[float] = []
    task = bench.progress.add_task("up, down, up, down", total=rounds)
    for _ in range(rounds):
        home = Path(tempfile.mkdtemp(prefix="shardkit-bench-", dir=parent))
        try:
            with _up(home / "cluster", cold) as cluster:
                bench.versions["postgresql"] = postgresql_version(cluster)
                _down(cluster, down)
            with _up(home / "cluster", warm) as cluster:
                memory.append(pss_mb(cluster.running().values()))
                _down(cluster, down)
        finally:
            shutil.rmtree(home, ignore_errors=True)
        bench.progress.advance(task)
    bench.record("up_cold_s", cold, unit="s", goal=3)
    bench.record("up_warm_s", warm, unit="s", goal=0.5)
    bench.record("down_s", down, unit="s")
    bench.record("memory_mb", memory, unit="MB")
    _init(bench, rounds=rounds)


def _init(bench: Bench, *, rounds: int) -> None:
    """`init` on three servers, and what copying ready-made databases (templates) would take there; making those not counted."""
    made: list[float] = []
    copied: list[float] = []
    task = bench.progress.add_task("256 shards, and a copy of them", total=rounds)
    with run_local(servers=3, redis=False, trust=True) as cluster:
        for _ in range(rounds):
            with fresh_databases(cluster.servers, 3) as databases, ThreadPoolExecutor(3) as pool:
                start = perf_counter()
                initialize(
                    Settings(catalog_url=databases.catalog_url),
                    servers=databases.servers,
                    shard_count=256,
                    blueprint=from_metadata(Made.metadata),
                )
                made.append(perf_counter() - start)
                start = perf_counter()
                list(pool.map(_copy, [server.url for server in cluster.servers], databases.servers.values()))
                copied.append(perf_counter() - start)
                list(pool.map(_drop_copy, [server.url for server in cluster.servers]))
            bench.progress.advance(task)
    bench.record("init_256_s", made, unit="s")
    bench.record("init_256_from_template_s", copied, unit="s")


def _copy(admin_url: str, database_url: str) -> None:
    with psycopg.connect(admin_url, autocommit=True) as connection:
        name = sql.Identifier(str(conninfo_to_dict(database_url)["dbname"]))
        connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(COPY), name))


def _drop_copy(admin_url: str) -> None:
    with psycopg.connect(admin_url, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE {}").format(sql.Identifier(COPY)))


def pss_mb(roots: Iterable[int]) -> float:
    """Memory of the processes *roots* and all below them, in MB; pages they share are counted once in all.

    That is PSS: RSS would count PostgreSQL's shared buffers once per backend.
    """
    return sum(pss_kb(pid) for pid in family(roots)) * 1024 / 1e6


def family(roots: Iterable[int]) -> set[int]:
    """The processes *roots* and all below them."""
    parents = dict(processes())
    found = set(roots)
    while grown := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= grown
    return found


def pss_kb(pid: int, kind: Literal["Pss", "Pss_Anon"] = "Pss") -> int:
    """Proportional memory of one process in kB; *Pss_Anon* leaves out shared buffers, the program and its libraries."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0  # it ended just now
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{kind}:"))


def _up(data_dir: Path, taken: list[float]) -> LocalCluster:
    start = perf_counter()
    cluster = run_local(servers=SERVERS, redis=True, data_dir=data_dir)
    taken.append(perf_counter() - start)
    return cluster


def _down(cluster: LocalCluster, taken: list[float]) -> None:
    start = perf_counter()
    cluster.down()
    taken.append(perf_counter() - start)


def postgresql_version(cluster: LocalCluster) -> str:
    with closing(psycopg.connect(cluster.servers[0].url, connect_timeout=10)) as connection:
        number = connection.info.server_version
    return f"{number // 10000}.{number % 10000}"


def _tmpfs() -> Path | None:
    """A folder in memory, where there is one with room: the goals are meant for it."""
    try:
        return TMPFS if shutil.disk_usage(TMPFS).free >= SPACE else None
    except OSError:
        return None
