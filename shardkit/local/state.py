"""What a local cluster remembers between two starts: ``cluster.json``, for its owner's eyes only."""

from __future__ import annotations

import json
import os
import tomllib
from dataclasses import asdict, dataclass, field
from pathlib import Path

from shardkit.errors import LocalClusterError

STATE_FILE = "cluster.json"
SETTINGS_FILE = "shardkit.toml"
FORMAT = 1
REDIS = "redis"
USER = "shardkit"
DATABASE = "shardkit"
CATALOG_DATABASE = "shardkit_catalog"
HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class LocalServer:
    """One PostgreSQL server of a local cluster."""

    name: str
    host: str
    port: int
    database: str
    user: str
    password: str | None = field(repr=False)

    @property
    def dsn(self) -> str:
        """Its address without the password, fit to be shown."""
        return f"postgresql://{self.user}@{self.host}:{self.port}/{self.database}"

    @property
    def url(self) -> str:
        """Its address with the password."""
        return self.url_of(self.database)

    def url_of(self, database: str) -> str:
        """The address of another *database* on it, with the password."""
        secret = f":{self.password}" if self.password else ""
        return f"postgresql://{self.user}{secret}@{self.host}:{self.port}/{database}"


@dataclass(frozen=True, slots=True)
class State:
    """Ports by server name, and the cluster's secret; ``fast`` is for tests, it gives up safety in a crash."""

    ports: dict[str, int]
    redis_port: int | None
    password: str | None = field(repr=False)
    fast: bool = False
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def servers(self) -> tuple[LocalServer, ...]:
        """The PostgreSQL servers in the order of their making."""
        return tuple(LocalServer(name, HOST, port, DATABASE, USER, self.password) for name, port in self.ports.items())

    @property
    def all_ports(self) -> dict[str, int]:
        """Ports by name in the order of their making, the Redis-protocol server's last."""
        return self.ports | ({REDIS: self.redis_port} if self.redis_port else {})

    @property
    def catalog_url(self) -> str:
        """Address of the catalog's database, with the password."""
        return self.servers[0].url_of(CATALOG_DATABASE)

    @property
    def redis_url(self) -> str | None:
        """Address of the Redis-protocol server, with the password; None where there is none."""
        secret = f":{self.password}@" if self.password else ""
        return f"redis://{secret}{HOST}:{self.redis_port}/0" if self.redis_port else None

    def toml(self) -> str:
        """The settings file a program of this cluster starts from."""
        lines = ["# Made by `shardkit local up`. It holds passwords: keep it to yourself.", ""]
        lines += [f"catalog_url = {json.dumps(self.catalog_url)}"]
        lines += [f"redis_url = {json.dumps(self.redis_url)}"] if self.redis_url else []
        for server in self.servers:
            lines += ["", f"[servers.{server.name}]", f"url = {json.dumps(server.url)}"]
        text = "\n".join(lines) + "\n"
        tomllib.loads(text)
        return text

    def save(self, home: Path) -> None:
        """Write both files, each whole or not at all."""
        write_private(home / STATE_FILE, json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n")
        write_private(home / SETTINGS_FILE, self.toml())

    @classmethod
    def load(cls, home: Path) -> State | None:
        """The state of the cluster in *home*, or None where there is none. Raises LocalClusterError for one it cannot read."""
        try:
            values = json.loads((home / STATE_FILE).read_text("utf-8"))
            if values.pop("format") != FORMAT:
                raise ValueError("another format")
            return cls(**values)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, KeyError, TypeError) as exc:
            raise LocalClusterError(
                f"{home / STATE_FILE} cannot be read ({exc}); nothing was changed. "
                "If the data is not needed: remove the directory and begin anew"
            ) from exc


def write_private(path: Path, text: str) -> None:
    """Replace *path* by *text*, readable by its owner only, and never half written."""
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
