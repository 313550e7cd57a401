"""Compares every shard's real structure with what it should be at its own version, server by server."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shardkit.catalog.ledger import moving_shards
from shardkit.catalog.rows import load_map, newest_map
from shardkit.core.drift import Item, Key, differences
from shardkit.core.fleet import Version
from shardkit.core.shardmap import ShardMap
from shardkit.db.connect import at, server_url
from shardkit.db.steps import Connection, read_versions
from shardkit.db.structure import read_structures, structure_of_script
from shardkit.errors import MigrationError, NeedsOnlineError, ServerError
from shardkit.schema.blueprint import from_models, script_at
from shardkit.schema.fleet import check_chosen
from shardkit.schema.run import schema_of
from shardkit.schema.tree import Tree
from shardkit.settings import Settings

AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Drift:
    """A shard that is not what it should be; ``differences`` is SQL that would make it so, to be read before it is run."""

    shard: int
    server: str
    schema: str
    differences: tuple[str, ...]


def check_fleet(
    settings: Settings,
    tree: Path,
    *,
    models: str | None = None,
    shard: int | None = None,
    only: frozenset[int] | None = None,
    refused: list[str] | None = None,
) -> tuple[list[Drift], int]:
    """Shards that drifted, and how many were looked at. Shards that are being moved are left out.

    The reference is the tree at the shard's own version, or the *models* (``module:Base``), or another *shard*.
    Raises NeedsOnlineError where the tree cannot be rendered: then name a shard that is right. A server that does not answer
    is an error too; with *refused*, what it said goes there, and the others are looked at.
    """
    with at(settings.catalog_url, settings, name="the catalog") as catalog:
        shard_map = load_map(catalog)
        moving = moving_shards(catalog, list(shard_map.placements))
        check_chosen(shard_map.placements, only=only)
        reference = _Reference(settings, shard_map, tree, models, shard)
        drifts: list[Drift] = []
        looked = 0
        for server in sorted(shard_map.servers):
            shards = [s for s in shard_map.shards_on(server) if (only is None or s in only) and s not in moving]
            try:
                url = server_url(shard_map.server(server), settings)
                with at(url, settings, name=f"server {server!r}") as connection:
                    for start in range(0, len(shards), AT_ONCE):
                        part = shards[start : start + AT_ONCE]
                        drifts += _compare(connection, shard_map, server, part, reference)
                        looked += len(part)
            except ServerError as exc:
                if refused is None:
                    raise
                refused.append(str(exc.args[0]))
        if drifts:
            moved = _moved(catalog, shard_map, [one.shard for one in drifts])
            drifts, looked = [one for one in drifts if one.shard not in moved], looked - len(moved)
    return sorted(drifts, key=lambda one: one.shard), looked


def _moved(catalog: Connection, shard_map: ShardMap, shards: list[int]) -> set[int]:
    """Those of *shards* that a move has begun with, or carried away, since *shard_map* was read."""
    now = newest_map(catalog, shard_map)
    return {s for s in shards if now.placements.get(s) != shard_map.placements[s]} | moving_shards(catalog, shards).keys()


def _compare(
    connection: Connection, shard_map: ShardMap, server: str, shards: list[int], reference: _Reference
) -> Iterator[Drift]:
    schemas = {shard: schema_of(shard_map, shard) for shard in shards}
    versions = read_versions(connection, list(schemas.values()))
    found = read_structures(connection, list(schemas.values()))
    now = read_versions(connection, list(schemas.values()))
    migrated = [shard for shard, schema in schemas.items() if now.get(schema) != versions.get(schema)]
    for shard in migrated:  # in between: what was read is of neither version
        del schemas[shard]
    if migrated:
        yield from _compare(connection, shard_map, server, migrated, reference)
    for shard, schema in schemas.items():
        if schema not in versions:
            yield Drift(shard, server, schema, (f"CREATE SCHEMA {schema};  -- the whole shard is missing",))
            continue
        try:
            wanted = reference.at(connection, server, versions[schema])
        except NeedsOnlineError:
            raise
        except MigrationError as exc:
            yield Drift(shard, server, schema, (f"-- {exc.args[0]}",))
            continue
        differing = differences(found[schema], wanted)
        if differing:
            yield Drift(shard, server, schema, (f"SET search_path TO {schema};", *differing))


class _Reference:
    """What a shard should be; worked out once for each server, since servers of different releases print differently."""

    def __init__(self, settings: Settings, shard_map: ShardMap, tree: Path, models: str | None, shard: int | None) -> None:
        self._models, self._known = models, dict[tuple[str, Version], dict[Key, Item]]()
        self._tree = Tree(tree) if models is None and shard is None else None
        self._given: dict[Key, Item] | None = None
        if shard is not None:
            route = shard_map.route(shard)
            url = server_url(shard_map.server(route.server), settings)
            with at(url, settings, name=f"server {route.server!r}") as connection:
                self._given = read_structures(connection, [route.schema])[route.schema]
            if not self._given:
                raise MigrationError(f"shard {shard} has no schema {route.schema} to compare with; nothing was done")

    def at(self, connection: Connection, server: str, version: Version) -> dict[Key, Item]:
        if self._given is not None:
            return self._given
        key = (server, version if self._tree else ())
        if key not in self._known:
            self._known[key] = structure_of_script(connection, self._script(version))
        return self._known[key]

    def _script(self, version: Version) -> str:
        if self._tree is None:
            return from_models(str(self._models)).sql
        if len(version) > 1:
            raise MigrationError(f"a shard stands between branches ({', '.join(version)}); migrate it first")
        return script_at(self._tree, version[0] if version else None)
