"""A real streaming replica of a local server: kept by the cluster's keeper, so it is gone when the cluster is."""

from __future__ import annotations

import contextlib
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from shardkit.local import LocalCluster
from shardkit.local.build import START_TIMEOUT_S
from shardkit.local.cluster import STOP_TIMEOUT_S
from shardkit.local.ports import HOST, free_ports
from shardkit.local.state import USER


@dataclass(frozen=True)
class Standby:
    """A standby called *name*, on a port of its own."""

    cluster: LocalCluster
    name: str
    port: int

    @property
    def directory(self) -> Path:
        """Its data."""
        return self.cluster.data_dir / "servers" / self.name

    def url_of(self, database: str) -> str:
        """Address of *database* on it."""
        return f"postgresql://{USER}@{HOST}:{self.port}/{database}"

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        lock = self.directory / "postmaster.pid"

        def ready(pid: int) -> bool:
            with contextlib.suppress(FileNotFoundError):
                lines = lock.read_text("utf-8").splitlines()
                return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready"
            return False

        argv = [self.cluster._site.postgres["postgres"], "-D", str(self.directory), "-p", str(self.port)]
        self.cluster._control.start(
            self.name, [*argv, "-c", f"cluster_name={self.name}"], timeout_s=START_TIMEOUT_S, ready=ready, stop=signal.SIGQUIT
        )

    def end(self, number: int = signal.SIGKILL) -> None:
        """Kill it."""
        assert self.cluster._control.end(self.name, number=number, timeout_s=STOP_TIMEOUT_S)

    @property
    def pid(self) -> int:
        """Its process."""
        running = self.cluster._control.running()
        assert running is not None
        return running[self.name]

    def promote(self) -> None:
        """Make it a primary, and wait until it is one."""
        argv = [self.cluster._site.postgres["pg_ctl"], "promote", "-w", "-D", str(self.directory)]
        self.cluster._control.run(f"promote-{self.name}", argv, timeout_s=START_TIMEOUT_S)

    def admin(self, database: str = "postgres") -> psycopg.Connection[Any]:
        """A connection as superuser."""
        return psycopg.connect(self.url_of(database), autocommit=True)

    def apply_after(self, delay: str) -> None:
        """recovery_min_apply_delay: how long commits are held back."""
        with self.admin() as connection:
            connection.execute(sql.SQL("ALTER SYSTEM SET recovery_min_apply_delay = {}").format(sql.Literal(delay)))
            connection.execute("SELECT pg_reload_conf()")

    def caught_up_with(self, primary_url: str) -> bool:
        """Whether it has replayed what the primary has flushed by now."""
        with psycopg.connect(primary_url, autocommit=True) as primary, self.admin() as here:
            row = primary.execute("SELECT pg_current_wal_flush_lsn()::text").fetchone()
            found = here.execute("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", row).fetchone()
            return found is not None and bool(found[0])


def make_standby(cluster: LocalCluster, *, of: str, name: str) -> Standby:
    """A running streaming replica of the server *of*; the cluster trusts its clients."""
    standby = Standby(cluster, name, free_ports(1)[0])
    primary = next(server for server in cluster.servers if server.name == of)
    cluster._site.directory("servers", name)
    argv = [cluster._site.postgres["pg_basebackup"], "-D", str(standby.directory), "-R", "-X", "stream", "-c", "fast"]
    cluster._control.run(f"backup-{name}", [*argv, "-d", primary.url_of("postgres")], timeout_s=START_TIMEOUT_S)
    standby.start()
    return standby
