# Generated from shardkit/_async/reading.py by tests/generate_sync.py: change that file instead.
"""``kit.cache``: entities by key, through Redis; never older than what was committed when the call began."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

from sqlalchemy import Text, cast, func, select

from shardkit._sync import forgetting, pastcache
from shardkit._sync.cache import Store
from shardkit._sync.filling import Filler, Grounds
from shardkit._sync.marking import BARRIER_TTL_MS, MARKER_TTL_MS, Marking
from shardkit._sync.nodes import UnreachableError
from shardkit._sync.tending import Tended
from shardkit.catalog.router import Router
from shardkit.core.cacheproto import ABSENT, tag
from shardkit.core.hashing import TenantKey
from shardkit.core.shardmap import Route
from shardkit.errors import (
    CacheDeclarationError,
    CacheKeyError,
    CacheUnavailableError,
    NoTenantError,
    SettingsError,
    TenantLockedError,
)
from shardkit.orm import cacheloads
from shardkit.orm.cached import Entity, Key, Names, entity_of
from shardkit.orm.cacheloads import Loaded
from shardkit.orm.cachescope import by_names, bypasses, inner_of, is_changed, key_values, knows, owner_of, parameters_of
from shardkit.orm.cachevalues import ListValue, RowValue, may_replace
from shardkit.orm.changes import vouch
from shardkit.orm.context import TenantContext
from shardkit.orm.session import RoutedSession, RoutedSession
from shardkit.settings import Settings

T = TypeVar("T")
By = str | Sequence[str] | None


class Cache(Tended):
    """Reads through Redis; without a redis_url, from PostgreSQL. Made by the kit, as ``kit.cache``."""

    def __init__(
        self, settings: Settings, *, router: Router, context: TenantContext, session: Callable[..., RoutedSession]
    ) -> None:
        super().__init__(router, session)
        self._context = context
        self._statements: dict[Any, Any] = {}
        if settings.redis_url is not None:
            self._store = Store(
                settings.redis_url,
                timeout_s=settings.cache_timeout_s,
                limit=settings.cache_pool_size,
                recovered=self._recovered,
            )
            self._filler = Filler(self._store, self.counts, barrier_ttl_ms=BARRIER_TTL_MS, new_xid=self.new_xid)
            self.writer = Marking(
                self._store, self.counts, cluster=self._cluster, on_down=settings.cache_on_down, marker_ttl_ms=MARKER_TTL_MS
            )
            self.writer.on_debt = self._owing

    def get(
        self,
        entity: type[T],
        key: Any,
        *,
        tenant: TenantKey | None = None,
        session: RoutedSession | None = None,
        by: By = None,
        with_for_update: Any = None,
    ) -> T | None:
        """The instance with this primary key, or with this value of the unique attributes *by*; None if there is none.

        It belongs to *session*, or to a read session of its own, and is what a load would have given. Asked of a session that
        wrote something, locks rows (*with_for_update*) or is above READ COMMITTED, PostgreSQL answers and not the cache.
        """
        found, how, values = self._parse(entity, key, by)
        inner = inner_of(session)
        if inner is not None and (
            with_for_update is not None
            or bypasses(inner)
            or knows(inner, found, how, values)
            or (how is not found.primary and is_changed(inner))
        ):
            self.counts.bypasses += 1
            loaded: T | None = pastcache.one(session, found, how, values, with_for_update)
            return loaded
        if with_for_update is not None:
            raise CacheKeyError("with_for_update locks rows for a transaction: give the session of it; nothing was read")
        tenant = self._tenant(tenant, inner)
        row = self._row(found, how, values, tenant, session, inner)
        if row is None:
            return None
        made: Sequence[T] = self._built(found, (row,), tenant, inner)
        return made[0]

    def get_row(self, entity: type[Any], key: Any, *, tenant: TenantKey | None = None, by: By = None) -> Any:
        """The same as a named tuple of the entity's columns: no session, nothing to be changed."""
        found, how, values = self._parse(entity, key, by)
        return self._row(found, how, values, self._context.resolve(tenant), None, None)

    def get_many(
        self,
        entity: type[T],
        keys: Iterable[Any],
        *,
        tenant: TenantKey | None = None,
        session: RoutedSession | None = None,
    ) -> dict[Any, T]:
        """Instances by primary key, in the order of *keys*; a key of which there is none is left out."""
        found, inner = entity_of(entity), inner_of(session)
        tenant = self._tenant(tenant, inner)
        if inner is not None and bypasses(inner):
            asked = {key: self.get(entity, key, session=session) for key in keys}
            return {key: one for key, one in asked.items() if one is not None}
        rows = self._rows(found, list(dict.fromkeys(keys)), tenant, session, inner)
        return dict(zip(rows, self._built(found, rows.values(), tenant, inner), strict=True))

    def get_rows(self, entity: type[Any], keys: Iterable[Any], *, tenant: TenantKey | None = None) -> dict[Any, Any]:
        """Named tuples by primary key."""
        found = entity_of(entity)
        return self._rows(found, list(dict.fromkeys(keys)), self._context.resolve(tenant), None, None)

    def list(
        self, entity: type[T], key: Any, *, by: By, tenant: TenantKey | None = None, session: RoutedSession | None = None
    ) -> Sequence[T]:
        """The newest instances with this value of the attributes *by*, a declared list key; at most its limit."""
        found, inner = entity_of(entity), inner_of(session)
        how = found.lists.get(by_names(by))
        if how is None:
            raise CacheDeclarationError(f"{found.name} has no list key {by!r}: declare ListKey({by!r}, limit=...)")
        values = key_values(key)
        found.name_of(how, values, self._tenant(tenant, inner) if found.tenant is not None else None)
        if inner is not None and (bypasses(inner) or is_changed(inner)):
            self.counts.bypasses += 1
            return pastcache.newest(session, found, how, values)
        tenant = self._tenant(tenant, inner)
        name = found.name_of(how, values, tenant)
        want = ListValue(found, name)

        def load() -> tuple[Any, Loaded]:
            statement = self._statement("list", cacheloads.list_statement, found, how)
            loaded = self._load(statement, parameters_of(found, values, tenant), 0, tenant, session)
            return loaded.rows, loaded

        keys = self._through(want, self._route(tenant, inner), load)
        single = len(found.primary.columns) == 1
        rows = self._rows(found, [k[0] if single else tuple(k) for k in keys], tenant, session, inner)
        places = [found.attributes.index(name) for name in how.attributes]
        here = [row for row in rows.values() if all(row[at] == value for at, value in zip(places, values, strict=True))]
        made: Sequence[T] = self._built(found, here, tenant, inner)  # a row may have left the list since that was read
        return made

    def invalidate(
        self,
        entity: type[Any],
        *keys: Any,
        tenant: TenantKey | None = None,
        session: RoutedSession | None = None,
        by: By = None,
    ) -> None:
        """Say which rows were changed by what shardkit cannot see: raw SQL, triggers, other programs.

        With *session* it takes effect with its COMMIT, and vouches for what its raw statements do to this entity's table;
        without one at once, for what is committed already. *by* names a unique or a list key; with a primary key the row's
        other keys are marked too, as they are now (a value that was changed has to be named by its key as well).
        """
        found = entity_of(entity)
        how = found.primary if by is None else found.keys.get(by_names(by)) or found.lists.get(by_names(by))
        if how is None:
            raise CacheDeclarationError(
                f"{found.name} has no key {by!r}, so nothing was marked: declare it in Cached(unique=...) or as a ListKey"
            )
        inner = inner_of(session)
        tenant = self._tenant(tenant, inner, operator=True)
        names = [found.name_of(how, key_values(key), tenant) for key in keys]
        if how is found.primary and len(found.all_keys) > 1:
            names += self._other_names(found, keys, tenant, session)
        if inner is not None:
            vouch(inner.changes, found, names)
            return
        if self._store is None:
            raise SettingsError("there is no redis_url, so there is no cache to invalidate")
        route = self._route(tenant, None)
        xid = self.new_xid(route)
        try:
            self._store.mark(tag(self._cluster, route.shard), names, xid=xid, epoch=route.epoch, ttl_ms=MARKER_TTL_MS)
        except UnreachableError as exc:
            raise CacheUnavailableError("Redis did not take the markers: nothing was invalidated, try again") from exc
        self.counts.marks += len(names)

    def forget(self, tenant: TenantKey, *, shard: int) -> int:
        """Drop all that is stored of *tenant* under *shard*: it has left that shard, or comes back to it. How many keys it was.

        Raises CacheUnavailableError where Redis does not answer: what it has may then be old.
        """
        if self._store is None:
            return 0
        try:
            return forgetting.forget(self._store, self._cluster, tenant, shard=shard)
        except UnreachableError as exc:
            raise CacheUnavailableError("Redis does not answer, so nothing was dropped from it; try again") from exc

    def _row(
        self,
        entity: Entity,
        how: Key,
        values: Names | tuple[Any, ...],
        tenant: Any,
        session: RoutedSession | None,
        inner: RoutedSession | None,
    ) -> Any:
        want = RowValue(entity, entity.name_of(how, values, tenant))

        def load() -> tuple[Any, Loaded]:
            statement = self._statement("row", cacheloads.row_statement, entity, how)
            loaded = self._load(statement, parameters_of(entity, values, tenant), entity.key_places[0], tenant, session)
            return (entity.codec.loaded(loaded.rows[0]) if loaded.rows else None), loaded

        return self._through(want, self._route(tenant, inner), load)

    def _through(self, want: Any, route: Route, load: Callable[[], Any]) -> Any:
        """The value of *want*: from Redis, or by *load*."""
        store, counts = self._store, self.counts
        if store is None:
            return (load())[0]
        at = tag(self._cluster, route.shard)
        outdated = b""
        try:
            (raw,) = store.fetch(at, (want.name,))
        except UnreachableError:
            counts.down += 1
            raw = None  # go on together with those of this process who want the same
        if raw is not None:
            usable, value = want.decode(raw)
            if usable:
                counts.hit()
                return value
            counts.corrupt += 1
            if not may_replace(want.entity, raw):
                return (self._filler.bypass(load))[0]
            outdated = raw
        counts.miss()
        return self._filler.one(at, route, want, outdated, load)

    def _rows(
        self,
        entity: Entity,
        keys: Sequence[Any],
        tenant: Any,
        session: RoutedSession | None,
        inner: RoutedSession | None,
    ) -> dict[Any, Any]:
        """Rows by primary key, in the order of *keys*; those of which there is one."""
        route = self._route(tenant, inner)
        names = entity.primary_names(keys, tenant)
        rows: dict[Any, Any] = {}
        missing = dict.fromkeys(keys, b"")
        if self._store is not None and keys:
            try:
                found = self._store.fetch(tag(self._cluster, route.shard), names)
            except UnreachableError:
                self.counts.down += 1
            else:
                decoded = entity.codec.decode_many(found)
                rows = dict(zip(keys, decoded, strict=True))
                if all(decoded):
                    self.counts.hit(len(keys))
                    return rows
                missing = {
                    key: raw if raw is not None and may_replace(entity, raw) else b""
                    for key, row, raw in zip(keys, decoded, found, strict=True)
                    if row is None and raw != ABSENT
                }
                self.counts.hit(len(keys) - len(missing))
        if missing:
            wants = {key: RowValue(entity, name) for key, name in zip(keys, names, strict=True) if key in missing}
            loaded = self._load_many(entity, wants, list(missing.values()), route, tenant, session)
            rows = dict.fromkeys(keys) | rows | loaded
        return {key: row for key, row in rows.items() if row is not None}

    def _load_many(
        self,
        entity: Entity,
        wants: dict[Any, RowValue],
        outdated: Sequence[bytes],
        route: Route,
        tenant: Any,
        session: RoutedSession | None,
    ) -> dict[Any, Any]:
        """Load all of *wants* by one statement, and fill those whose leases are free."""
        at = tag(self._cluster, route.shard)
        grounds, answers = Grounds(), [b"E"] * len(wants)
        self.counts.miss(len(wants))
        if self._store is not None:
            try:
                grounds, answers = self._filler.leases(at, route, list(wants.values()), outdated)
            except UnreachableError:
                self.counts.down += 1
        statement = self._statement("rows", cacheloads.rows_statement, entity)
        parameters = {"keys": list(wants), **owner_of(entity, tenant)}
        started = time.monotonic()
        self.counts.loads += 1
        loaded = self._load(statement, parameters, entity.key_places[0], tenant, session)
        load_ms = round((time.monotonic() - started) * 1000)
        rows: dict[Any, Any] = dict.fromkeys(wants)
        for row in loaded.rows:
            key = tuple(row[place] for place in entity.key_places)
            rows[key if len(key) > 1 else key[0]] = entity.codec.loaded(row)
        taken = [
            (want, rows[key], answer[1:])
            for (key, want), answer in zip(wants.items(), answers, strict=True)
            if answer[:1] == b"L"
        ]
        if taken:
            self._filler.fill(at, taken, grounds, loaded, load_ms)
        return rows

    def _load(
        self, statement: Any, parameters: dict[str, Any], key_at: int, tenant: Any, session: RoutedSession | None
    ) -> Loaded:
        inner = inner_of(session)
        here = inner is not None and inner.asks(self._router)  # a replica's row could be older than what is committed
        own: Any = nullcontext(session) if here else self._session(tenant, read_only=True)
        with own as there:
            connection = there.connection()
            result = connection.execute(statement, parameters)
            return cacheloads.loaded(result.all(), absent_at=key_at)

    def new_xid(self, route: Route) -> int:
        """A transaction id assigned now, of a transaction that ends at once."""
        with self._session(None, shard=route.shard) as session:
            connection = session.connection()
            xid = int((connection.execute(select(cast(func.pg_current_xact_id(), Text)))).scalar_one())
            session.commit()
            return xid

    def _other_names(self, entity: Entity, keys: Iterable[Any], tenant: Any, session: Any) -> Sequence[str]:
        """Names of all keys that rows have at this moment, seen by *session* if there is one."""
        own: Any = self._session(tenant, read_only=True) if session is None else nullcontext(session)
        statement = cacheloads.keys_statement(entity)
        parameters = {
            "keys": [k if len(entity.primary.columns) > 1 else key_values(k)[0] for k in keys],
            **owner_of(entity, tenant),
        }
        with own as there:
            connection = there.connection()
            found = (connection.execute(statement, parameters)).all()
        return [name for row in found for name in entity.names_of(dict(zip(entity.key_columns, row, strict=True)))]

    def _statement(self, kind: str, make: Callable[..., Any], *about: Any) -> Any:
        statement = self._statements.get((kind, *about))
        if statement is None:
            statement = self._statements[(kind, *about)] = make(*about)
        return statement

    def _parse(self, cls: type[Any], key: Any, by: By) -> tuple[Entity, Key, tuple[Any, ...]]:
        entity = entity_of(cls)
        how = entity.primary if by is None else entity.keys.get(by_names(by))
        if how is None:
            raise CacheDeclarationError(f"{entity.name} has no unique key {by!r}: declare it in Cached(unique=...)")
        return entity, how, key_values(key)

    def _tenant(self, tenant: TenantKey | None, inner: RoutedSession | None, *, operator: bool = False) -> Any:
        if inner is None:
            return self._context.resolve(tenant)
        if inner.tenant is None:
            if tenant is None and not operator:
                raise NoTenantError
            return tenant
        if tenant is not None and tenant != inner.tenant:
            raise TenantLockedError("the session is another tenant's; nothing was read")
        return inner.tenant

    def _route(self, tenant: Any, inner: RoutedSession | None) -> Route:
        return self._router.locate(tenant) if inner is None or inner.tenant is not None else inner.route

    def _built(self, entity: Entity, rows: Collection[Any], tenant: Any, inner: RoutedSession | None) -> Any:
        """Instances of *rows*; without a session they share a read session, which they keep."""
        if inner is not None:
            return entity.build(inner, rows)
        own = self._session(tenant, read_only=True, autoflush=False)
        made = entity.build(inner_of(own), rows)
        for one in made:
            one._sa_instance_state.info["shardkit_session"] = own
        return made
