"""From what was asked for to running servers: makes what is missing, starts what does not run, undoes what fails."""

from __future__ import annotations

import atexit
import contextlib
import errno
import re
import secrets
import shutil
import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from shardkit.errors import DiskFullError, PortTakenError, SettingsError
from shardkit.local import build, nobody
from shardkit.local.binaries import find_postgres, find_redis
from shardkit.local.build import Site
from shardkit.local.cluster import OURS, STOP_TIMEOUT_S, LocalCluster, locked, remove_data
from shardkit.local.control import Control
from shardkit.local.ports import check_free, check_ports, free_ports
from shardkit.local.state import REDIS, State

MAX_SERVERS = 64
PORT_TRIES = 5
SHM = Path("/dev/shm")  # noqa: S108  a private directory is made in it
SHM_ROOM_BYTES, SHM_SERVER_BYTES = 512 << 20, 256 << 20

_SETTING = re.compile(r"[a-z_][a-z0-9_.]*")


@dataclass(frozen=True, slots=True)
class Wish:
    """What a caller of ``run_local`` asked for, checked."""

    servers: int
    redis: bool
    trust: bool
    fast: bool
    ports: list[int] | None  # of the servers in order, then of Redis
    settings: dict[str, str]

    def __post_init__(self) -> None:
        if isinstance(self.servers, bool) or not 1 <= self.servers <= MAX_SERVERS:
            raise SettingsError(f"{self.servers!r} servers cannot be: use 1 to {MAX_SERVERS}. Nothing was started")
        if self.ports is not None and len(check_ports(self.ports)) != self.servers + self.redis:
            raise SettingsError(
                f"{len(self.ports)} ports for {self.servers} servers{' and Redis' if self.redis else ''}: "
                "give one for each, or none. Nothing was started"
            )
        for name, value in self.settings.items():
            if not _SETTING.fullmatch(name) or not isinstance(value, str) or not value.isprintable():
                raise SettingsError(f"{name!r} = {value!r} cannot be a PostgreSQL setting; nothing was started")

    def applied_to(self, old: State | None) -> State:
        """The state of the cluster to be: *old* grown as wished; SettingsError where it cannot become that."""
        names = [f"pg{number}" for number in range(1, self.servers + 1)]
        if old is None:
            chosen = self.ports or free_ports(self.servers + self.redis)
            password = None if self.trust else secrets.token_urlsafe(24)
            redis_port = chosen[self.servers] if self.redis else None
            return State(dict(zip(names, chosen, strict=False)), redis_port, password, self.fast, self.settings)
        if self.servers < len(old.ports):
            raise SettingsError(
                f"the cluster has {len(old.ports)} servers, {self.servers} were asked for, and servers are not taken "
                "away; nothing was changed. Ask for as many, or begin anew after `down --purge`"
            )
        if self.trust != (old.password is None) or self.fast != old.fast:
            raise SettingsError("the cluster was made with other values of trust or fast; nothing was changed")
        grown = [name for name in names if name not in old.ports]
        given = self.ports or []
        new_ports = given[len(old.ports) : self.servers] or free_ports(len(grown))
        ports = old.ports | dict(zip(grown, new_ports, strict=True))
        redis_port = old.redis_port or ((given[self.servers :] or free_ports(1))[0] if self.redis else None)
        if given and given != [*ports.values(), *([redis_port] if self.redis else [])]:
            raise SettingsError("the cluster has other ports than were asked for; nothing was changed. Leave them out")
        return replace(old, ports=ports, redis_port=redis_port, settings=old.settings | self.settings)


def run_local(
    *,
    servers: int = 3,
    redis: bool = True,
    data_dir: Path | None = None,
    trust: bool = False,
    fast: bool = False,
    ports: Sequence[int] | None = None,
    settings: Mapping[str, str] = MappingProxyType({}),
) -> LocalCluster:
    """Start real servers on loopback: *servers* PostgreSQL, and one Redis-protocol server if *redis*.

    Without *data_dir* the cluster is temporary and ends with this process, however that ends. With it the data stays
    and the servers run on until ``down()``; calling again finds them running, starts what is not, and adds servers if
    more are asked for than there are.

    *trust* and *fast* are for tests: no passwords, and no safety when the machine crashes. *ports* are those of the
    PostgreSQL servers in order, then of Redis (left out: free ones). *settings* go into every server's configuration.

    Raises BinariesMissingError, PortTakenError, DiskFullError, SettingsError or LocalClusterError; then nothing runs
    that did not run before.
    """
    wish = Wish(servers, redis, trust, fast, list(ports) if ports is not None else None, dict(settings))
    owned = data_dir is None
    home = _temporary_home(servers) if data_dir is None else Path(data_dir).absolute()
    new_home = owned or not home.exists()
    new_parents = [parent for parent in home.parents if not parent.exists()]
    with _disk_errors(home):
        try:
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
        except FileExistsError as exc:
            raise SettingsError(f"{home} is not a directory; nothing was started") from exc
        with locked(home):
            old = State.load(home)
            if old is None and (foreign := [p.name for p in home.iterdir() if p.name not in OURS]):
                raise SettingsError(
                    f"{home} holds no local cluster, but other things ({foreign[0]!r}); nothing was changed. "
                    "Choose another directory"
                )
            try:
                return _up(home, wish, old=old, owned=owned)
            except BaseException:
                if old is None:
                    remove_data(home, whole=new_home)
                    with contextlib.suppress(OSError):  # somebody put something there
                        for parent in new_parents:
                            parent.rmdir()
                raise


def _up(home: Path, wish: Wish, *, old: State | None, owned: bool) -> LocalCluster:
    state = wish.applied_to(old)
    postgres, redis = find_postgres(), find_redis() if state.redis_port else None
    control = Control(home)
    before = control.running()
    if before is None:
        control = Control.launch(home, owned=owned)
    try:
        mode = control.ask("status")["mode"]
        if mode == "nobody":
            nobody.check_reach(home)
            postgres = replace(postgres, directory=nobody.reachable(postgres.directory / "postgres").parent)
            redis = nobody.reachable(redis) if redis else None
        site = Site(home, control, mode, postgres, redis)
        state = _start(site, state, new=old is None and wish.ports is None, fresh_keeper=before is None)
    except BaseException:
        if old is not None:
            old.save(home)
        if before is None or old is None:
            control.down()
        else:
            for name in (control.running() or {}).keys() - before.keys():
                control.end(name, number=signal.SIGINT, timeout_s=STOP_TIMEOUT_S)
        raise
    cluster = LocalCluster(state, site)
    if owned:
        atexit.register(cluster.down)
    return cluster


def _start(site: Site, state: State, *, new: bool, fresh_keeper: bool) -> State:
    """Make and start what is missing; the state is returned because ports that were lost in a race are replaced."""
    build.prepare(site, clear=fresh_keeper)
    for left in reversed(range(PORT_TRIES)):
        running = site.control.running() or {}
        stopped = {name: port for name, port in state.all_ports.items() if name not in running}
        try:
            check_free(stopped.values())
            state.save(site.home)
            if unmade := build.missing(site.home, state):
                build.make_data(site, state, unmade)
            build.start(site, state, list(stopped))
            return state
        except PortTakenError:
            if not new or not left:
                raise
        running = site.control.running() or {}
        lost = [name for name in stopped if name not in running]
        fresh = dict(zip(lost, free_ports(len(lost)), strict=True))
        redis_port = fresh.pop(REDIS, state.redis_port)
        state = replace(state, ports=state.ports | fresh, redis_port=redis_port)
    raise AssertionError("unreachable: the last try returns or raises")


def _temporary_home(servers: int) -> Path:
    room = SHM_ROOM_BYTES + servers * SHM_SERVER_BYTES
    in_memory = SHM.is_dir() and shutil.disk_usage(SHM).free >= room
    return Path(tempfile.mkdtemp(prefix="shardkit-", dir=SHM if in_memory else None))


@contextlib.contextmanager
def _disk_errors(home: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        if exc.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise DiskFullError(f"no space left on the disk of {home}; nothing was started") from exc
        raise
