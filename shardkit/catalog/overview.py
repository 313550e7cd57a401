"""What a cluster looks like now: its map, and what each server in it says of itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from shardkit.catalog.resolver import InDoubt, outcomes
from shardkit.catalog.rows import load_map
from shardkit.core.shardmap import Server, ShardMap
from shardkit.db.connect import at, server_url
from shardkit.db.servers import ServerFacts, facts
from shardkit.db.two_phase import Prepared, prepared
from shardkit.errors import CatalogUnavailableError, ServerDownError, ShardKitError
from shardkit.settings import Settings

GRACE_S = 1.0  # a server gets its whole time-out for connecting, and this much for its answer


@contextmanager
def opened(settings: Settings) -> Iterator[Any]:
    """A connection to the catalog, for operators' work. Raises CatalogUnavailableError."""
    try:
        with at(settings.catalog_url, settings, name="the catalog") as connection:
            yield connection
    except ServerDownError as exc:
        raise CatalogUnavailableError(f"{exc.args[0]}. Check catalog_url, and that its server runs") from exc


def current_map(settings: Settings) -> ShardMap:
    """The catalog's map, now. Raises CatalogUnavailableError, NotInitializedError."""
    with opened(settings) as connection:
        return load_map(connection)


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """One server: ``shards`` are those the map places there, ``size_bytes`` and ``release`` what it says (None: it does not).

    ``problems``: it cannot be reached, is another one, or its schemas are not those of the map. Empty: all is well.
    """

    server: Server
    shards: int
    size_bytes: int | None
    release: str | None
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Overview:
    """A map, and its servers as they are."""

    map: ShardMap
    servers: tuple[ServerStatus, ...]
    in_doubt: tuple[InDoubt, ...] = ()
    """Parts of transactions over several shards that wait for their second phase, and hold locks meanwhile."""

    @property
    def healthy(self) -> bool:
        """Whether no server has a problem, and no transaction has waited for longer than it may."""
        return not any(status.problems for status in self.servers) and not any(one.part.overdue for one in self.in_doubt)


def overview(settings: Settings) -> Overview:
    """Ask all servers at once; one that does not answer in time is reported, not waited for."""
    shardmap = current_map(settings)
    answers: dict[str, ServerFacts | ShardKitError] = {}
    waiting: dict[str, list[Prepared]] = {}

    def ask(server: Server) -> None:
        try:
            with at(server_url(server, settings), settings, name=f"server {server.name!r}") as connection:
                found = facts(connection, timeout_s=settings.connect_timeout_s)
                waiting[server.name] = prepared(connection, cluster=shardmap.cluster_id.hex)
                answers[server.name] = found
        except ShardKitError as exc:
            answers[server.name] = exc

    deadline = time.monotonic() + settings.connect_timeout_s + GRACE_S
    threads = [threading.Thread(target=ask, args=(server,), daemon=True) for server in shardmap.servers.values()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    judged = tuple(judge(shardmap, server, answers.get(server.name)) for server in shardmap.servers.values())
    return Overview(shardmap, judged, tuple(outcomes(settings, waiting)))


def judge(shardmap: ShardMap, server: Server, answer: ServerFacts | ShardKitError | None) -> ServerStatus:
    """Compare what *server* answered with what the map says of it."""
    expected = {shardmap.route(shard).schema for shard in shardmap.shards_on(server.name)}
    if answer is None or isinstance(answer, ShardKitError):
        problem = answer.args[0].partition(";")[0] if answer else f"server {server.name!r} did not answer in time"
        return ServerStatus(server, len(expected), None, None, (problem,))
    problems = []
    if answer.identity != (shardmap.cluster_id, server.server_id):
        problems.append("the database behind its DSN is not this server: correct the DSN")
    elif answer.schemas != expected:
        problems += _difference("schemas of the map are missing", expected - answer.schemas)
        problems += _difference(
            "schemas the map does not place here (copies of a move, or left over)", answer.schemas - expected
        )
    return ServerStatus(server, len(expected), answer.size_bytes, answer.release, tuple(problems))


def _difference(what: str, names: frozenset[str] | set[str]) -> list[str]:
    shown = sorted(names)[:3]
    return [f"{len(names)} {what}: {', '.join(shown)}{', …' if len(names) > len(shown) else ''}"] if names else []
