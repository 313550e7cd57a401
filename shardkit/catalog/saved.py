"""The last map in a file, so that a program can start while the catalog is down (law 9)."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from pathlib import Path
from typing import Any
from uuid import UUID

from shardkit.core.shardmap import Placement, Server, ServerState, ShardMap

log = logging.getLogger("shardkit.catalog")
_FORMAT = 1


def write(path: Path | None, shardmap: ShardMap) -> None:
    """Replace *path* by *shardmap*, whole or not at all; a disk that refuses is a warning, not an error."""
    if path is None:
        return
    data = {
        "format": _FORMAT,
        "cluster_id": str(shardmap.cluster_id),
        "version": shardmap.version,
        "shard_count": shardmap.shard_count,
        "tenant_type": shardmap.tenant_type,
        "hash_version": shardmap.hash_version,
        "servers": [
            [s.name, s.dsn, str(s.server_id), s.weight, s.state.value, list(s.replicas), s.timeline]
            for s in shardmap.servers.values()
        ],
        "placements": [[shard, *place] for shard, place in shardmap.placements.items()],
        "pins": list(shardmap.pins.items()),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(data, file)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as exc:
        log.warning("the shard map could not be saved to %s: %s", path, exc)


def read(path: Path | None) -> ShardMap | None:
    """The map in *path*; None where there is none, or none that can be trusted."""
    if path is None or not path.exists():
        return None
    try:
        data = json.loads(path.read_text("utf-8"))
        if data["format"] != _FORMAT:
            raise ValueError(f"its format is {data['format']!r}, not {_FORMAT}")
        return _from(data)
    except (OSError, ValueError, KeyError, TypeError) as exc:
        log.warning("the saved shard map in %s is not usable: %s", path, exc)
        return None


def _from(data: dict[str, Any]) -> ShardMap:
    return ShardMap(
        cluster_id=UUID(data["cluster_id"]),
        version=int(data["version"]),
        shard_count=int(data["shard_count"]),
        tenant_type=data["tenant_type"],
        hash_version=int(data["hash_version"]),
        servers={
            name: Server(name, dsn, UUID(server_id), float(weight), ServerState(state), tuple(replicas), int(*timeline or [0]))
            for name, dsn, server_id, weight, state, replicas, *timeline in data["servers"]
        },
        placements={shard: Placement(server, epoch, parent) for shard, server, epoch, parent in data["placements"]},
        pins=dict(data["pins"]),
    )
