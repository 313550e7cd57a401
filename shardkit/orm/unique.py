"""Keys that are unique over all shards: reserved in a registry before the row is written, confirmed after its COMMIT.

The registry is hash-sharded by the key. A reservation carries a token, and the row's transaction writes the same token as a
claim in its own shard. So who meets an old reservation can find out for certain what became of it: it writes a void claim with
that token, which waits for the transaction if it is still open, fails if it was committed, and makes it fail if it comes later.
"""

from __future__ import annotations

import logging
import time
from typing import Any, Final, NamedTuple
from uuid import UUID, uuid4

from sqlalchemy import Column, event, text
from sqlalchemy import exc as sa_exc
from sqlalchemy.orm import Session, SessionTransaction, UOWTransaction, object_mapper
from sqlalchemy.orm.attributes import get_history
from sqlalchemy.schema import SchemaItem

from shardkit.core.hashing import TenantKey, shard_of
from shardkit.core.shardmap import ShardMap
from shardkit.errors import KeyTakenError, NoTenantError, SessionError, SettingsError, ShardKitError
from shardkit.orm.lone import GLOBAL_UNIQUE
from shardkit.orm.session import RoutedSession

log = logging.getLogger("shardkit.keys")
REMEMBERED_S: Final = 5.0
REMEMBERED: Final = 65_536
PATIENCE_S: Final = 10.0
"""Age at which a reservation that was not confirmed is looked into."""
_PENDING: Final = "shardkit_keys"

_RESERVE = text(
    "INSERT INTO shardkit_keys (kind, key, tenant, token) VALUES (:kind, :key, :tenant, :token)"
    " ON CONFLICT DO NOTHING RETURNING token"
)
_KNOWN = text(
    "SELECT tenant, token, confirmed, clock_timestamp() - reserved_at > make_interval(secs => :patience_s)"
    " FROM shardkit_keys WHERE kind = :kind AND key = :key"
)
_CLAIM = text("INSERT INTO shardkit_claims (token) VALUES (:token)")
_VOID = text("INSERT INTO shardkit_claims (token, void) VALUES (:token, true) ON CONFLICT DO NOTHING")
_PATIENCE = text("SET LOCAL lock_timeout = '5s'")
_IS_VOID = text("SELECT void FROM shardkit_claims WHERE token = :token")
_FORGET_CLAIM = text("DELETE FROM shardkit_claims WHERE token = :token AND NOT void")
_CONFIRM = text("UPDATE shardkit_keys SET confirmed = true WHERE kind = :kind AND key = :key AND token = :token")
_RELEASE = text("DELETE FROM shardkit_keys WHERE kind = :kind AND key = :key AND token = :token")
_RELEASE_OWN = text("DELETE FROM shardkit_keys WHERE kind = :kind AND key = :key AND tenant = :tenant AND confirmed")


class GlobalUnique(SchemaItem):
    """Makes a column's values unique over all shards: ``email: Mapped[str] = mapped_column(GlobalUnique())``.

    It holds for rows written through ORM sessions of tenants. A second row with a value raises KeyTakenError at its flush;
    ``kit.locate_by(User.email, "x")`` finds the tenant. NULLs are not compared.
    """

    __visit_name__ = "global_unique"

    def _set_parent(self, parent: Any, **_: Any) -> None:
        parent.info[GLOBAL_UNIQUE] = True

    def copy(self, **_: Any) -> GlobalUnique:
        """Another one, for another column."""
        return GlobalUnique()

    _copy = copy


class Key(NamedTuple):
    """A value of one column, and the token of its reservation."""

    kind: str
    key: str
    token: UUID


def kind_of(column: Column[Any]) -> str:
    """What a key of *column* is called in the registry."""
    return f"{column.table.name}.{column.name}"


def unique_columns(mapper: Any) -> dict[str, Column[Any]]:
    """Attributes of *mapper* whose values are unique over all shards, remembered."""
    known: dict[str, Column[Any]] | None = mapper.__dict__.get(GLOBAL_UNIQUE)
    if known is None:
        known = mapper.__dict__[GLOBAL_UNIQUE] = {
            attribute.key: column
            for attribute in mapper.column_attrs
            for column in attribute.columns
            if isinstance(column, Column) and column.info.get(GLOBAL_UNIQUE)
        }
    return known


def registry_shard(shardmap: ShardMap, kind: str, key: str) -> int:
    """The shard whose part of the registry has *key*."""
    return shard_of(f"{kind}\x1f{key}", tenant_type="str", shard_count=shardmap.shard_count)


class Registry:
    """The registry as a session's guide reaches it; every step is a short transaction of its own."""

    def __init__(self, guide: Any) -> None:
        self._guide = guide

    def reserve(self, key: Key, tenant: TenantKey, column: Column[Any]) -> None:
        """Reserve *key* for *tenant*. Raises KeyTakenError if it belongs to another row, or is being claimed."""
        for _ in range(3):
            if self._run(key, _RESERVE, tenant=str(tenant)):
                return
            holder = self.holder(key.kind, key.key)
            if holder is not None and not self._is_free(key, holder, column):
                break
        raise KeyTakenError(f"this {key.kind} belongs to another row; nothing was written")

    def holder(self, kind: str, key: str) -> Any:
        """Tenant, token, whether confirmed, whether old; None for a free key."""
        found = self._run(Key(kind, key, UUID(int=0)), _KNOWN, patience_s=PATIENCE_S)
        return found[0] if found else None

    def settle(self, key: Key, tenant: TenantKey) -> bool:
        """What became of a reservation: True, and confirmed, if its row was committed; else it is released for good."""
        with self._at(tenant) as session:
            session.execute(_PATIENCE)
            session.execute(_VOID, {"token": key.token})  # waits for the claimant's transaction, if that is open
            void = session.scalar(_IS_VOID, {"token": key.token})
            session.commit()
        self._run(key, _RELEASE if void else _CONFIRM)
        return not void

    def is_written(self, kind: str, key: str, holder: Any) -> bool:
        """Whether the row of an unconfirmed reservation is committed; does not wait for its transaction."""
        with self._at(self.tenant(holder.tenant)) as session:
            claimed = session.scalar(_IS_VOID, {"token": holder.token}) is False
        if claimed:
            self._run(Key(kind, key, holder.token), _CONFIRM)
        return claimed

    def confirm(self, key: Key, tenant: TenantKey) -> None:
        """The row of *key* is committed."""
        self._run(key, _CONFIRM)
        with self._at(tenant) as session:
            session.execute(_FORGET_CLAIM, {"token": key.token})
            session.commit()

    def release_own(self, kind: str, key: str, tenant: TenantKey) -> None:
        """The row of a key of *tenant* was deleted, or has another key now."""
        self._run(Key(kind, key, UUID(int=0)), _RELEASE_OWN, tenant=str(tenant))

    def _is_free(self, key: Key, holder: Any, column: Column[Any]) -> bool:
        """Whether the key of *holder* is free again, after finding out if need be."""
        if not holder.confirmed:
            if not holder[3]:
                return False
            return not self.settle(Key(key.kind, key.key, holder.token), self.tenant(holder.tenant))
        tenant = self.tenant(holder.tenant)
        table = column.table
        with self._at(tenant) as session:
            row = session.execute(table.select().where(column == key.key, table.c.tenant_id == tenant).limit(1)).first()
        if row is None:  # it was deleted, and the one who did that died before it could say so
            self._run(Key(key.kind, key.key, holder.token), _RELEASE)
        return row is None

    def _run(self, key: Key, statement: Any, **more: Any) -> list[Any]:
        shard = registry_shard(self._guide.map, key.kind, key.key)
        with RoutedSession(guide=self._guide, shard=shard) as session:
            result = session.execute(statement, {"kind": key.kind, "key": key.key, "token": key.token, **more})
            rows = list(result.all()) if getattr(result, "returns_rows", False) else []
            session.commit()
            return rows

    def _at(self, tenant: TenantKey) -> RoutedSession:
        """An operator's session on the shard of *tenant*."""
        return RoutedSession(guide=self._guide, shard=self._guide.map.shard_of(tenant))

    def tenant(self, stored: str) -> TenantKey:
        """A tenant as the registry stores it, back in its type."""
        return int(stored) if self._guide.map.tenant_type == "int" else stored


class KeyLookup:
    """Finds the tenant that has a key, and remembers it for a few seconds."""

    def __init__(self, guide: Any) -> None:
        self._guide = guide
        self._known: dict[tuple[str, str], tuple[float, TenantKey]] = {}

    def tenant_of(self, attribute: Any, value: Any) -> TenantKey | None:
        """Tenant of the row with *value* in *attribute*, if there is one. Raises SettingsError for any other attribute."""
        column = unique_columns(attribute.parent).get(attribute.key)
        if column is None:
            raise SettingsError(f"{attribute} is not GlobalUnique: nobody keeps a registry of its values")
        kind, key, now = kind_of(column), str(value), time.monotonic()
        at, tenant = self._known.get((kind, key), (0.0, None))
        if tenant is not None and now < at + REMEMBERED_S:
            return tenant
        registry = Registry(self._guide)
        holder = registry.holder(kind, key)
        if holder is None or not (holder.confirmed or registry.is_written(kind, key, holder)):
            self._known.pop((kind, key), None)
            return None
        if len(self._known) >= REMEMBERED:
            self._known.clear()
        found = registry.tenant(holder.tenant)
        self._known[kind, key] = now, found
        return found


@event.listens_for(RoutedSession, "before_flush")
def _reserve(session: RoutedSession, _context: UOWTransaction, _instances: Any) -> None:
    for instance in [*session.new, *session.dirty]:
        for name, column in unique_columns(object_mapper(instance)).items():
            history = get_history(instance, name)
            for value in history.added:
                if value is not None:
                    _take(session, column, value, instance)
            if history.added and instance not in session.new:
                _leave(session, column, history.deleted)
    for instance in session.deleted:
        for name, column in unique_columns(object_mapper(instance)).items():
            _leave(session, column, [getattr(instance, name)])


def _take(session: RoutedSession, column: Column[Any], value: Any, instance: Any) -> None:
    tenant = session.tenant if session.tenant is not None else getattr(instance, "tenant_id", None)
    if tenant is None:
        raise NoTenantError("a row with a key that is unique over all shards needs a tenant; nothing was written")
    if session.in_nested_transaction():
        raise SessionError("a row with a key that is unique over all shards cannot be written inside a savepoint")
    key = Key(kind_of(column), str(value), uuid4())
    pending = session.info.setdefault(_PENDING, [])
    if any(whose is instance and (held.kind, held.key) == (key.kind, key.key) for held, _, whose in pending):
        return  # an earlier try of this flush got as far as this
    Registry(session._guide).reserve(key, tenant, column)
    pending.append((key, tenant, instance))
    try:
        session.connection().execute(_CLAIM, {"token": key.token})
    except sa_exc.IntegrityError as exc:
        raise KeyTakenError(f"the claim on this {key.kind} took too long and was released; nothing was written") from exc


def _leave(session: RoutedSession, column: Column[Any], values: Any) -> None:
    tenant = session.tenant
    for value in values or ():
        if value is not None and tenant is not None:
            session.info.setdefault(f"{_PENDING}_left", []).append((kind_of(column), str(value), tenant))


@event.listens_for(RoutedSession, "after_commit")
def _confirm(session: Session) -> None:
    if session.in_nested_transaction():
        return
    registry = Registry(session._guide)  # type: ignore[attr-defined]  # a RoutedSession's
    for kind, key, tenant in session.info.pop(f"{_PENDING}_left", ()):
        _try(registry.release_own, kind, key, tenant)
    for key, tenant, _ in session.info.pop(_PENDING, ()):
        _try(registry.confirm, key, tenant)


@event.listens_for(RoutedSession, "after_transaction_end")
def _release(session: Session, transaction: SessionTransaction) -> None:
    """Rolled back, closed, or of unknown outcome: the claims know."""
    if transaction.parent is not None or "info" not in vars(session):  # it is made when first asked for
        return
    session.info.pop(f"{_PENDING}_left", None)
    registry = Registry(session._guide) if _PENDING in session.info else None  # type: ignore[attr-defined]  # a RoutedSession's
    for key, tenant, _ in session.info.pop(_PENDING, ()):
        if registry is not None:
            _try(registry.settle, key, tenant)


def _try(call: Any, *arguments: Any) -> None:
    """Best effort: what is left undone is found out by whoever meets the key next."""
    try:
        call(*arguments)
    except (ShardKitError, sa_exc.DBAPIError) as exc:
        log.warning("a key's state will be found out later: %s", exc)
