"""Which shards of a server are asked in one statement: chunks that stay the same while shards elsewhere come and go."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from shardkit.core.shardmap import Route

CHUNK: Final = 128
"""Schemas in one statement, about: fewer cost more statements, many more cost planning, memory and locks at once."""


def chunks_of(routes: Iterable[Route], *, of: int) -> dict[str, list[tuple[Route, ...]]]:
    """*routes* in chunks by server; *of* is the number of all shards.

    A chunk holds the shards of one range of numbers, so that a move changes one chunk (and its prepared text) on each side,
    not all that follow.
    """
    by_server: dict[str, list[Route]] = {}
    for route in routes:
        by_server.setdefault(route.server, []).append(route)
    made = {}
    for server, mine in by_server.items():
        width = CHUNK * max(1, round(of / len(mine)))
        ranges: dict[int, list[Route]] = {}
        for route in sorted(mine, key=lambda route: route.shard):
            ranges.setdefault(route.shard // width, []).append(route)
        chunks: list[tuple[Route, ...]] = []
        for found in ranges.values():
            parts = -(-len(found) // (2 * CHUNK))  # numbers may lie unevenly: never more than twice as many
            size = -(-len(found) // parts)
            chunks += [tuple(found[n : n + size]) for n in range(0, len(found), size)]
        made[server] = chunks
    return made
