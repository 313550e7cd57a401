"""Frozen settings from arguments, the environment or a TOML file; checked at once, and secrets hide themselves."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, Literal, get_args
from urllib.parse import urlsplit

from shardkit.core.names import check_server_name
from shardkit.errors import SettingsError

OnDown = Literal["strict", "outbox", "ttl"]
Pooler = Literal["none", "pgbouncer-transaction"]
ReadFrom = Literal["primary", "replica"]
CONFIG_VARIABLE: Final = "SHARDKIT_CONFIG"
PREFIX: Final = "SHARDKIT_"


class Secret(str):
    """A string that is shown nowhere by accident: repr hides it, and so does a traceback that prints locals."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "Secret('***')"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything a program says about its cluster. Times are in seconds; URLs are kept as Secret, whose repr hides them."""

    catalog_url: str
    """libpq URL of the catalog database."""
    redis_url: str | None = None
    """URL of the Redis-protocol server, for the cache; without it there is none."""
    servers: Mapping[str, str] = field(default_factory=dict)
    """libpq URL with credentials, by server name, where the catalog's DSN and its own credentials are not enough."""
    pool_size: int = 10
    """Connections in the pool of one server."""
    fan_out_connections: int = 4
    """Connections to one server that fan-outs of this process may use at once, beside its pool."""
    pool_timeout_s: float = 5.0
    """How long a session waits for a free connection."""
    connection_lifetime_s: float = 1800.0
    """Age at which a connection is replaced: a backend never gives back the memory of the schemas it touched."""
    call_timeout_s: float = 30.0
    """The longest one call to a server may take; `kit.deadline` sets a nearer end for a block."""
    pool_queue: int = 200
    """How many may wait for a connection to one server; the next one is refused at once."""
    connection_budget: int = 30
    """Connections this process may hold to one server, over all its pools."""
    connect_timeout_s: float = 5.0
    """How long a new connection may take."""
    tcp_timeout_s: float = 10.0
    """How long the kernel waits for an unanswered packet before it gives a connection up."""
    pooler: Pooler = "none"
    """What stands between us and PostgreSQL; with a transaction pooler nothing is prepared and nothing set at start-up."""
    prepared_max: int = 512
    """Statements kept prepared on one connection (about 17 kB each in the backend)."""
    poll_interval_s: float = 5.0
    """How old the shard map may get when notifications are lost."""
    move_wait_s: float = 5.0
    """How long a unit of work that met a fence waits for the map to say where its shard went."""
    read_from: ReadFrom = "primary"
    """Where `kit.read` reads when it is not told: on the primary, or on a replica that is not further behind than below."""
    replica_max_lag_s: float = 1.0
    """How old what a replica shows may be."""
    replica_check_s: float = 0.2
    """How often the positions of a primary and of its replicas are looked at, while somebody reads from replicas."""
    replica_wait_s: float = 0.1
    """How long a replica may take to catch up with a tenant's own writes before the primary is asked instead."""
    token_key: str | None = None
    """Secret that signs read-your-writes tokens, the same in all programs of a cluster."""
    map_file: Path | None = None
    """Where the last map is kept, so that a program can start while the catalog is down."""
    cache_on_down: OnDown = "outbox"
    """What a writer does when Redis does not take its marker: fail ("strict"), leave it to an outbox row of the same
    transaction ("outbox": readers may see the older value until it is drained), or to the entity's time to live ("ttl")."""
    cache_timeout_s: float = 0.05
    """How long a call to Redis may take before PostgreSQL is asked instead."""
    cache_pool_size: int = 32
    """Connections this process may hold to one Redis server."""
    count_loads: bool = True
    """Count units of work by tenant and shard, and how long statements take, for `rebalance --by load` and `kit.load()`."""
    load_interval_s: float = 30.0
    """How often the catalog is told of them, in the background."""
    insecure_transport: bool = False
    """Allow a host off loopback without sslmode=verify-full (or a redis:// URL off loopback)."""
    application_name: str = "shardkit"
    """What PostgreSQL shows in ``pg_stat_activity``."""

    def __post_init__(self) -> None:
        for name in ("catalog_url", "redis_url", "application_name"):
            _text(name, getattr(self, name))
        _table("servers", self.servers)
        for name in ("insecure_transport", "count_loads"):
            if type(getattr(self, name)) is not bool:
                raise SettingsError(f"{name} is true or false; nothing was started")
        if not self.catalog_url:
            raise SettingsError(
                f"no catalog_url: set SHARDKIT_CATALOG_URL, or name a TOML file that has it in {CONFIG_VARIABLE}"
            )
        for where, text in (("catalog_url", self.catalog_url), ("redis_url", self.redis_url or ""), *self.servers.items()):
            if not isinstance(text, str):
                raise SettingsError(f"{where} must be a URL, in quotes")
        object.__setattr__(self, "catalog_url", Secret(self.catalog_url))
        object.__setattr__(self, "redis_url", Secret(self.redis_url) if self.redis_url else None)
        object.__setattr__(self, "token_key", Secret(self.token_key) if self.token_key else None)
        object.__setattr__(self, "servers", {check_server_name(n): Secret(u) for n, u in self.servers.items()})
        if not isinstance(self.map_file, str | Path | None):
            raise SettingsError("map_file must be a path")
        if self.map_file is not None:
            object.__setattr__(self, "map_file", Path(self.map_file))
        if self.pooler not in get_args(Pooler):
            raise SettingsError(f"pooler is one of {', '.join(get_args(Pooler))}, not {self.pooler!r}")
        if self.read_from not in get_args(ReadFrom):
            raise SettingsError(f"read_from is one of {', '.join(get_args(ReadFrom))}, not {self.read_from!r}")
        if self.cache_on_down not in get_args(OnDown):
            raise SettingsError(f"cache_on_down is one of {', '.join(get_args(OnDown))}, not {self.cache_on_down!r}")
        if self.redis_url is not None:
            _check_redis(self.redis_url, insecure=self.insecure_transport)
        for name in ("pool_size", "fan_out_connections", "prepared_max", "pool_queue", "connection_budget", "cache_pool_size"):
            _whole(name, getattr(self, name), at_least=1)
        for found in fields(self):
            if found.name.endswith("_s"):
                _duration(found.name, getattr(self, found.name))

    @property
    def pooled(self) -> bool:
        """Whether a pooler stands between us and PostgreSQL."""
        return self.pooler != "none"

    @classmethod
    def from_toml(cls, path: str | Path, **overrides: Any) -> Settings:
        """Settings from a TOML file: keys as above, and ``[servers.NAME]`` tables with a ``url``. Raises SettingsError."""
        try:
            data = tomllib.loads(Path(path).read_text("utf-8"))
        except OSError as exc:
            raise SettingsError(f"the settings file {path} cannot be read: {exc.strerror}") from exc
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
            raise SettingsError(f"the settings file {path} is not valid TOML: {exc}") from exc
        return cls._checked({**_flat_servers(data, str(path)), **overrides}, source=str(path))

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
        """Settings from ``SHARDKIT_CONFIG`` (a TOML file, optional) and ``SHARDKIT_<KEY>`` variables, which win over it."""
        environ = os.environ if environ is None else environ
        given = {
            f.name: _parsed(f.name, environ[PREFIX + f.name.upper()])
            for f in fields(cls)
            if f.name != "servers" and PREFIX + f.name.upper() in environ
        }
        if CONFIG_VARIABLE in environ:
            return cls.from_toml(environ[CONFIG_VARIABLE], **{**given, **overrides})
        return cls._checked({**given, **overrides}, source="the environment")

    @classmethod
    def _checked(cls, data: Mapping[str, Any], *, source: str) -> Settings:
        unknown = sorted(data.keys() - {f.name for f in fields(cls)})
        if unknown:
            raise SettingsError(f"unknown setting {', '.join(unknown)} in {source}; nothing was started")
        return cls(**{"catalog_url": Secret(""), **data})


def _flat_servers(data: dict[str, Any], source: str) -> dict[str, Any]:
    tables = data.pop("servers", {})
    try:
        if any(table.keys() != {"url"} for table in tables.values()):
            raise KeyError
        return {**data, "servers": {name: table["url"] for name, table in tables.items()}}
    except (KeyError, AttributeError):
        raise SettingsError(f"each [servers.NAME] table in {source} has one key, url; nothing was started") from None


def _parsed(name: str, text: str) -> Any:
    kind = next(f.type for f in fields(Settings) if f.name == name)
    try:
        match str(kind):
            case "int":
                return int(text)
            case "float":
                return float(text)
            case "bool":
                return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False, "": False}[text.lower()]
    except (ValueError, KeyError):
        raise SettingsError(f"{PREFIX}{name.upper()} must be of type {kind}") from None
    return text or None if name in ("redis_url", "map_file", "token_key") else text


def _text(name: str, value: object) -> None:
    if not isinstance(value, str | None):
        raise SettingsError(f"{name} must be {'a URL' if name.endswith('_url') else 'a text'}")


def _table(name: str, value: object) -> None:
    if not isinstance(value, Mapping) or not all(isinstance(url, str) for url in value.values()):
        raise SettingsError(f"{name} must be URLs by server name")


def _whole(name: str, value: object, *, at_least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise SettingsError(f"{name} must be a whole number of at least {at_least}")


def _duration(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise SettingsError(f"{name} must be a number of seconds above 0: every wait has an end")


def _check_redis(url: str, *, insecure: bool) -> None:
    """Refuse what is no Redis URL, and a transport off loopback that could be listened to."""
    parts = urlsplit(url)
    scheme, _, kind = parts.scheme.partition("+")
    if scheme not in {"redis", "rediss", "unix"} or kind not in {"", "cluster", "sentinel"} or (scheme == "unix" and kind):
        raise SettingsError(
            "redis_url is redis://, rediss:// or unix://, or with +cluster or +sentinel "
            "(redis+sentinel://a:26379,b:26379/name); "
            "its text is not shown, it may hold a password"
        )
    hosts = [part.rpartition(":")[0] or part for part in parts.netloc.rpartition("@")[2].split(",")]
    verified = scheme == "rediss" and "ssl_cert_reqs=none" not in parts.query.lower()
    if not (insecure or verified or scheme == "unix" or all(is_loopback(host.strip("[]")) for host in hosts)):
        raise SettingsError(
            f"Redis host {', '.join(hosts)} is not on loopback and this is not rediss:// with its certificate checked: "
            "anybody in between could read or change everything. Use rediss://, or write out insecure_transport = true"
        )


def is_loopback(host: str) -> bool:
    """Whether *host* is this machine: a socket directory, localhost or a loopback address."""
    if host.startswith(("/", "@")) or host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
