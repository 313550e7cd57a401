"""The only place that builds or checks schema, server, role, lock and key names.

Identifiers never come from a request: shard schemas are made from two integers, everything else is a constant, so that
no quoting rule stands between a tenant and another tenant's rows.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple
from uuid import UUID

from shardkit.errors import NameRejectedError

CATALOG_SCHEMA: Final = "shardkit_catalog"
SERVER_SCHEMA: Final = "shardkit"
GLOBAL_SCHEMA: Final = "shardkit_global"
CATALOG_SERVER: Final = "catalog"
APP_ROLE: Final = "shardkit_app"
OPERATOR_ROLE: Final = "shardkit_operator"
MAP_CHANNEL: Final = "shardkit_map"
ID_SEQUENCE: Final = "shardkit_ids"
ID_ORIGIN_SEQUENCE: Final = "shardkit_ids_origin"
REFERENCE_SCHEMA: Final = "shardkit_reference"
ID_LOCK_CLASS: Final = 0x73_6B_69_64  # "skid": first half of the advisory lock (class, shard)
# Migrations and moves keep out of each other's way by the advisory lock (class, shard) on the catalog database. A migration
# holds it, shared, while it works on a shard, and looks only then where the shard is and whether a move of it is open. A move
# takes it, exclusive, for the transaction that writes its journal row (a trigger on that table sees to it) or for as long as
# it likes; the row itself keeps migrations away until the move is over, also when nobody works on it.
SHARD_LOCK_CLASS: Final = 0x73_6B_73_68  # "sksh"
FLEET_LOCK_CLASS: Final = 0x73_6B_66_6C  # "skfl": (class, 0) on the catalog database, held by the one runner of migrations
STEP_LOCK_CLASS: Final = 0x73_6B_73_74  # "skst": (class, shard) on a server, held while one shard takes one revision
OWN_PREFIX: Final = "shardkit_"  # of tables that shardkit itself keeps in a shard: no program's models, no revision's business
VERSION_TABLE: Final = "alembic_version"
PROGRESS_TABLE: Final = "shardkit_progress"  # in a shard: how far a revision came that no transaction can hold
FURNITURE: Final = (  # what shardkit puts into every shard
    "shardkit_keys",
    "shardkit_claims",
    "shardkit_outbox",
    "shardkit_inbox",
    "shardkit_cache_outbox",
    ID_SEQUENCE,
    ID_ORIGIN_SEQUENCE,
)

GUARD_TRIGGER: Final = "shardkit_refuse_writes"
MARKS_TABLE: Final = "move_marks"
CURTAIN_PREFIX: Final = "shardkit_curtain_"

_SCHEMA = re.compile(r"s(\d{4,5})_e(\d{1,9})")
_GID = re.compile(r"shardkit:([0-9a-f]{32}):([0-9a-f]{32}):(\d{1,5}):(\d{1,6})")
_PROGRAM = re.compile(r"(.*) map=(\d{1,18}) budget=(\d{1,9})")
_SERVER = re.compile(r"[a-z][a-z0-9_-]{0,30}")


class ShardSchema(NamedTuple):
    """What a shard schema's name says."""

    shard: int
    epoch: int


def schema_name(shard: int, epoch: int) -> str:
    """Schema of *shard* at *epoch*: ``s0291_e17``. The epoch in the name is the fence. Raises NameRejectedError."""
    if type(shard) is not int or type(epoch) is not int or not (0 <= shard <= 99_999 and 1 <= epoch <= 999_999_999):
        raise NameRejectedError(f"no schema name for shard {shard!r} at epoch {epoch!r}")
    return f"s{shard:04d}_e{epoch}"


def parse_schema(name: str) -> ShardSchema | None:
    """Shard and epoch of a schema name, or None where it is not one of ours."""
    found = _SCHEMA.fullmatch(name)
    if found is None:
        return None
    schema = ShardSchema(int(found[1]), int(found[2]))
    return schema if schema.epoch and schema_name(*schema) == name else None


def stream_name(cluster: UUID, move: int, way: str) -> str:
    """Name of the publication, slot and subscription of a move's stream *way* (``out`` or ``back``). Slots of all clusters on
    one PostgreSQL share a name space, hence the cluster. Raises NameRejectedError.
    """
    if way not in ("out", "back") or type(move) is not int or move < 1:
        raise NameRejectedError(f"no stream name for move {move!r}, way {way!r}")
    return f"shardkit_{cluster.hex[:8]}_{move}_{way}"


def relay_slot_name(cluster: UUID, server: str) -> str:
    """Name of the slot by which the cache's relay follows *server*."""
    return f"{relay_slot_prefix(cluster)}{check_server_name(server).replace('-', '_')}"


RELAY_SESSION: Final = "shardkit cache relay"
"""Application name of the relay's sessions."""


def relay_slot_prefix(cluster: UUID) -> str:
    """What the names of all of its slots begin with; nothing else of a cluster is called so."""
    return f"shardkit_cache_{cluster.hex[:8]}_"


def session_name(cluster: UUID, move: int) -> str:
    """Application name of every session that works on a move, by which the next operator finds and ends them."""
    return f"shardkit move {cluster.hex[:8]}/{move}"


def curtain_name(move: int) -> str:
    """Name of the policies that hide a tenant's rows in the shard *move* carried it out of. Raises NameRejectedError."""
    if type(move) is not int or move < 1:
        raise NameRejectedError(f"no curtain name for move {move!r}")
    return f"{CURTAIN_PREFIX}{move}"


def check_server_name(name: str) -> str:
    """*name* if it can name a server: 1 to 31 of ``a-z 0-9 _ -``, a letter first. Raises NameRejectedError."""
    if name == CATALOG_SERVER:
        raise NameRejectedError(f"{name!r} is the name of the catalog's own database; choose another for a server")
    if not isinstance(name, str) or not _SERVER.fullmatch(name):
        raise NameRejectedError(f"{name!r} cannot name a server: use 1 to 31 of a-z, 0-9, '_' and '-', beginning with a letter")
    return name


class Gid(NamedTuple):
    """What the name of a prepared transaction says: cluster, transaction, which part of it, and the seconds it may wait."""

    cluster: str
    txn: str
    part: int
    patience_s: int


def gid(cluster: str, txn: str, part: int, patience_s: int) -> str:
    """Name of one part of a transaction over several shards; *cluster* and *txn* are 32 hexadecimal digits. Raises
    NameRejectedError.
    """
    name = f"shardkit:{cluster}:{txn}:{part}:{patience_s}"
    if parse_gid(name) is None:
        raise NameRejectedError(f"{name!r} cannot name a prepared transaction")
    return name


def parse_gid(name: str) -> Gid | None:
    """What a prepared transaction's name says, or None where it is not one of ours."""
    found = _GID.fullmatch(name)
    return Gid(found[1], found[2], int(found[3]), int(found[4])) if found else None


def program_name(application: str, *, version: int, budget: int) -> str:
    """What a running program calls its session at the catalog: *application*, its map's version, its connections' budget."""
    return f"{application[:30]} map={version} budget={budget}"


def parse_program(name: str) -> tuple[str, int, int] | None:
    """Application, map version and budget of such a session, or None for any other."""
    found = _PROGRAM.fullmatch(name)
    return (found[1], int(found[2]), int(found[3])) if found else None
