"""The outbox as SQL: an effect on another tenant is a row of the sender's own transaction, until it has been applied."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import BigInteger, Column, DateTime, MetaData, Table, Text, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB

from shardkit.core.hashing import TenantKey

OUTBOX: Final = Table(
    "shardkit_outbox",
    MetaData(),
    Column("id", BigInteger, primary_key=True),
    Column("from_tenant", Text),
    Column("to_tenant", Text),
    Column("kind", Text),
    Column("payload", JSONB),
    Column("created_at", DateTime(timezone=True)),
)
LOCK_CLASS: Final = 0x73_6B_6F_62  # "skob": first half of advisory locks

# Ids are taken in the order in which they are committed: whoever sends to the same tenant waits for this transaction.
IN_TURN: Final = text("SELECT pg_advisory_xact_lock(:class, hashtext(:pair))")
SEND: Final = text(
    "INSERT INTO shardkit_outbox (to_tenant, kind, payload) VALUES (:to, :kind, CAST(:payload AS jsonb)) RETURNING id"
)
ALONE: Final = text("SELECT pg_try_advisory_xact_lock(:class, :shard)")
OLDEST: Final = text(
    "SELECT id, from_tenant, to_tenant, kind, payload, created_at FROM shardkit_outbox WHERE id > :after AND NOT EXISTS"
    " (SELECT FROM unnest(CAST(:senders AS text[]), CAST(:receivers AS text[])) AS held(sender, receiver)"
    " WHERE sender = from_tenant AND receiver = to_tenant) ORDER BY id LIMIT :limit"
)
ADVANCE: Final = text(
    "INSERT INTO shardkit_inbox AS known (from_shard, from_tenant, to_tenant, last) VALUES (:shard, :from, :to, :id)"
    " ON CONFLICT (from_shard, from_tenant, to_tenant) DO UPDATE SET last = excluded.last WHERE known.last < excluded.last"
    " RETURNING last"
)
APPLIED: Final = text("DELETE FROM shardkit_outbox WHERE id IN :ids").bindparams(bindparam("ids", expanding=True))


@dataclass(frozen=True, slots=True)
class Effect:
    """What one tenant's transaction wants done at another's."""

    id: int
    from_tenant: TenantKey
    to_tenant: TenantKey
    kind: str
    payload: Any
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Lag:
    """Effects that wait in all outboxes, and since when the oldest one does; ``shards`` says the same of each that has any."""

    waiting: int
    oldest: datetime | None
    shards: Mapping[int, Lag] = field(default_factory=dict)

    def age_s(self, now: datetime | None = None) -> float:
        """Seconds that the oldest effect has waited; 0 if none does."""
        return 0.0 if self.oldest is None else max(0.0, ((now or datetime.now(UTC)) - self.oldest).total_seconds())


def as_json(payload: Any) -> str:
    """*payload* as the outbox stores it. Raises TypeError for what JSON cannot hold."""
    return json.dumps(payload)
