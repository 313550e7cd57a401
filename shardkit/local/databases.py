"""Throw-away databases on running local servers, for tests: quick to make, and dropped whatever still uses them."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql

from shardkit.local.state import LocalServer

CONNECT_TIMEOUT_S = 60

Connection = psycopg.Connection[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class FreshDatabases:
    """Addresses, with passwords, of empty databases: one for each server by name, and one for a catalog."""

    servers: dict[str, str] = field(repr=False)
    catalog_url: str = field(repr=False)


@contextlib.contextmanager
def fresh_databases(on: Sequence[LocalServer], count: int) -> Iterator[FreshDatabases]:
    """*count* empty databases ``pg1``, ``pg2`` … on the servers *on* in turn, and one for a catalog on the first."""
    mark = f"t{secrets.token_hex(6)}"
    homes = {f"pg{number + 1}": on[number % len(on)] for number in range(count)}
    wanted: dict[LocalServer, list[str]] = {}
    for name, server in homes.items():
        wanted.setdefault(server, []).append(f"{mark}_{name}")
    wanted.setdefault(on[0], []).append(f"{mark}_catalog")
    try:
        _on_each(wanted, _create)
        yield FreshDatabases(
            servers={name: server.url_of(f"{mark}_{name}") for name, server in homes.items()},
            catalog_url=on[0].url_of(f"{mark}_catalog"),
        )
    finally:
        _on_each(wanted, _drop)


def _create(connection: Connection, name: str) -> None:
    # FILE_COPY is the slower way here: it asks for two checkpoints.
    connection.execute(sql.SQL("CREATE DATABASE {} STRATEGY wal_log").format(sql.Identifier(name)))


def _drop(connection: Connection, name: str) -> None:
    connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def _on_each(databases: dict[LocalServer, list[str]], do: Callable[[Connection, str], None]) -> None:
    def work(server: LocalServer) -> None:
        url = server.url_of("postgres")
        with psycopg.connect(url, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S) as connection:
            for name in databases[server]:
                do(connection, name)

    with ThreadPoolExecutor(len(databases)) as pool:
        list(pool.map(work, databases))
