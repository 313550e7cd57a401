"""A real ``sqlalchemy.orm.Session`` whose transactions run on one tenant's shard.

The route is looked up when a transaction begins, never earlier; nothing of it is kept afterwards. AsyncSession drives the
same class, so that both colours share every decision made here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, SessionTransaction, UOWTransaction
from sqlalchemy.sql.dml import Delete, Insert, Update
from sqlalchemy.sql.selectable import Select

from shardkit.core.hashing import TenantKey
from shardkit.core.shardmap import Route
from shardkit.core.token import Token, token_after
from shardkit.db.leg import Leg, driver_connection
from shardkit.db.wire import Receipt
from shardkit.errors import Outcome, ReadOnlyError, ServerError, SessionError, UnknownKeysError
from shardkit.orm.bulk import refuse_unreserved, refuse_unreserved_mapper
from shardkit.orm.cached import INFO
from shardkit.orm.changes import ANNOUNCED, Changes, Writer, gather, gather_returned, look_ahead, settle, with_keys
from shardkit.orm.context import Trail
from shardkit.orm.keys import assign_ids
from shardkit.orm.lone import is_lone_insert
from shardkit.orm.tenancy import CRITERIA, TENANT_PARAMETER, criteria_of, own


class Guide(Protocol):
    """What a session asks when a transaction begins."""

    def set_out(self, tenant: TenantKey | None, shard: int | None) -> tuple[Leg, Engine]:
        """Leg and engine (with the shard's schema translated in) for *tenant*, or for operator access to *shard*."""
        ...


class FixedGuide:
    """A guide that always gives the same leg: where global tables live."""

    def __init__(self, there: tuple[Leg, Engine]) -> None:
        self._there = there

    def set_out(self, tenant: TenantKey | None, shard: int | None) -> tuple[Leg, Engine]:
        """There, whoever asks."""
        del tenant, shard
        return self._there


class RoutedSession(Session):
    """A Session of one tenant (or of an operator, on one shard). ``session.route`` says where its transaction runs."""

    def __init__(
        self,
        *,
        guide: Guide,
        tenant: TenantKey | None = None,
        shard: int | None = None,
        read_only: bool = False,
        cache: Writer | None = None,
        trail: Trail | None = None,
        tracked: bool = False,
        seal: Callable[[Token], str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(close_resets_only=False, **options)
        self._cache = cache
        self._changes: Changes | None = None
        self._guide, self._tenant, self._shard, self._read_only = guide, tenant, shard, read_only
        self._committing, self._tracked, self._trail = False, tracked, trail
        self._seal = seal
        self._written: Token | None = None
        self._leg: Leg | None = None
        self._engine: Engine | None = None
        self._connection: Connection | None = None

    @property
    def tenant(self) -> TenantKey | None:
        """Whose session this is; None for an operator's. It cannot be changed."""
        return self._tenant

    @property
    def route(self) -> Route:
        """Where the open transaction runs, or where the next one would."""
        leg, connection = self._leg, self._connection
        if connection is not None and not (connection.closed or connection.invalidated):
            leg = driver_connection(connection).leg  # it may have been led on
        return (leg or self._guide.set_out(self._tenant, self._shard)[0]).route

    @property
    def token(self) -> str | None:
        """A read-your-writes token, for a cookie or a header: ``kit.read(tenant, token=...)``, in any program of the cluster,
        sees what this session has committed. None while it has committed nothing. No I/O: it came home with the COMMIT.
        """
        return None if self._written is None or self._seal is None else self._seal(self._written)

    def get_bind(self, mapper: Any = None, *, bind: Any = None, **_: Any) -> Any:  # noqa: ARG002  # SQLAlchemy's signature
        """Engine of the server that holds the shard; the same one until the transaction ends."""
        if bind is not None:
            return bind
        if self._engine is None:
            self._leg, self._engine = self._guide.set_out(self._tenant, self._shard)
        return self._engine

    def _connection_for_bind(self, engine: Any, execution_options: Any = None, **keywords: Any) -> Connection:
        """As ever; where a replica cannot be reached, the primary's connection."""
        try:
            return super()._connection_for_bind(engine, execution_options, **keywords)
        except ServerError:
            leg = self._leg
            if leg is None or leg.home is None or engine is not self._engine:
                raise
            self._leg, schema = leg.home, leg.home.route.schema
            self._engine = leg.home.engine.execution_options(schema_translate_map={None: schema})
            return super()._connection_for_bind(self._engine, execution_options, **keywords)

    @property
    def on_replica(self) -> bool:
        """Whether the open unit of work reads from a replica."""
        connection = self._connection
        return connection is not None and not connection.closed and driver_connection(connection).leg.home is not None

    def _execute_internal(self, statement: Any, params: Any = None, **keywords: Any) -> Any:
        """Every statement of a tenant's session is filtered here.

        The public hook, do_orm_execute, makes SQLAlchemy prepare each ORM statement twice; this costs one option.
        """
        if self._tenant is not None and isinstance(statement, Select):
            if statement._propagate_attrs and not isinstance(params, Sequence):
                statement = statement._generate()  # as options() does, which looks at what kind of option it is each time
                statement._with_options += (CRITERIA,)
                params = {TENANT_PARAMETER: self._tenant, **(params or {})}
        elif (
            self._tenant is not None
            and isinstance(statement, Update | Delete)
            and statement._propagate_attrs
            and not isinstance(params, Sequence)
        ):
            statement = statement.options(criteria_of(self._tenant))
        if isinstance(statement, Insert | Update | Delete):
            if not isinstance(statement, Delete):
                refuse_unreserved(statement, params)
            if self._cache is not None:
                return self._write(statement, params, keywords)
        return super()._execute_internal(statement, params, **keywords)

    def _write(self, statement: Any, params: Any, keywords: dict[str, Any]) -> Any:
        """A statement that changes rows, made to say which, if they are cached."""
        statement, entity = with_keys(statement, params, self.changes)
        if entity is None:
            return super()._execute_internal(statement, params, **keywords)
        options = {**(keywords.pop("execution_options", None) or {}), **ANNOUNCED}
        result = super()._execute_internal(statement, params, execution_options=options, **keywords)
        return gather_returned(result, entity, self.changes)

    def asks(self, guide: object) -> bool:
        """Whether it is *guide* that says where this session's transactions run."""
        return self._guide is guide

    def mark_cached(self) -> None:
        """Mark what this transaction changed in cached tables; for who ends it in another way than by ``commit()``."""
        _settle(self)

    @property
    def changes(self) -> Changes:
        """What this transaction changes in cached tables."""
        if self._changes is None:
            self._changes = Changes()
        return self._changes

    def _bulk_save_mappings(self, mapper: Any, *arguments: Any, **keywords: Any) -> None:
        refuse_unreserved_mapper(mapper)
        if self._cache is not None and INFO in mapper.local_table.info:
            raise UnknownKeysError(
                "bulk_save_objects and bulk_..._mappings do not tell which rows of the cached table "
                f"{mapper.local_table.name} they change: "
                "nothing was written. Use add_all(), or session.execute(insert(...), rows)"
            )
        super()._bulk_save_mappings(mapper, *arguments, **keywords)

    def flush(self, objects: Any = None) -> None:
        """As ever; a read-only session refuses to write."""
        if self._read_only and (self._new or self._deleted or self._dirty_states):
            raise ReadOnlyError("kit.read() is for reading: use kit.begin() or kit.session() to write; nothing was written")
        if self._committing and objects is None and is_lone_insert(self):
            self._flush_and_commit()
        else:
            super().flush(objects)

    def commit(self) -> None:
        """As ever; COMMIT travels with the last INSERT where that one statement is all that is left to do."""
        self._committing = True
        try:
            super().commit()
        finally:
            self._committing = False

    def _is_clean(self) -> bool:
        """As ever. SQLAlchemy asks it last before COMMIT, when all is flushed and every listener was heard."""
        clean = super()._is_clean()
        if clean and self._changes is not None and self._changes.committing:
            _settle(self)
        return clean

    def _flush_and_commit(self) -> None:
        _settle(self)  # the row itself is in no cache
        driver = driver_connection(self.connection())
        receipt = Receipt()
        if driver.leg is not None and not driver.tracked and driver.silent:
            driver.last = receipt
        try:
            super().flush()
        except Exception as exc:
            if receipt.committed:
                raise SessionError(
                    "the row was written and committed, and then its answer could not be read", outcome=Outcome.DONE
                ) from exc
            raise
        finally:
            driver.last = None


class AsyncRoutedSession(AsyncSession):
    """The same for asyncio: a real ``AsyncSession`` around a RoutedSession."""

    sync_session_class = RoutedSession
    sync_session: RoutedSession

    @property
    def tenant(self) -> TenantKey | None:
        """Whose session this is; None for an operator's."""
        return self.sync_session.tenant

    @property
    def route(self) -> Route:
        """Where the open transaction runs, or where the next one would."""
        return self.sync_session.route

    @property
    def token(self) -> str | None:
        """A read-your-writes token, for a cookie or a header: ``kit.read(tenant, token=...)``, in any program of the cluster,
        sees what this session has committed. None while it has committed nothing. No I/O: it came home with the COMMIT.
        """
        return self.sync_session.token

    @property
    def on_replica(self) -> bool:
        """Whether the open unit of work reads from a replica."""
        return self.sync_session.on_replica


@event.listens_for(RoutedSession, "after_begin")
def _embark(session: RoutedSession, transaction: SessionTransaction, connection: Connection) -> None:
    leg = session._leg
    if leg is None or transaction.nested:  # None: bound to a connection by hand, the program's own business
        return
    driver = driver_connection(connection)
    if not driver.begin:
        raise SessionError(
            "AUTOCOMMIT is refused on a routed session: the tenant and the path are set for a transaction. "
            "For reads outside one there is kit.read(...)"
        )
    if leg.home is not None and driver.begin != b"BEGIN":  # a replica serves single reads at READ COMMITTED only
        session._leg = leg = leg.home
        dialect: Any = connection.dialect
        driver = dialect.change_road(connection, leg)
    every, marked = session._read_only and driver.begin == b"BEGIN", session._cache is not None
    driver.embark(leg, every=every, tracked=session._tracked, marked=marked)
    session._connection = connection


@event.listens_for(RoutedSession, "after_commit")
def _note(session: RoutedSession) -> None:
    connection = session._connection
    if connection is None or session._tenant is None or connection.closed:
        return
    driver = driver_connection(connection)
    if driver.wrote and driver.idle and driver.leg is not None:  # not idle: it was a savepoint that was released
        session._written = token_after(driver.leg.route, driver.timeline, driver.commit_lsn)


@event.listens_for(RoutedSession, "after_transaction_end")
def _arrive(session: RoutedSession, transaction: SessionTransaction) -> None:
    if transaction.parent is None:
        if session._trail is not None and session._connection is not None and not session._read_only:
            session._trail.wrote()
        session._leg = session._engine = session._connection = session._changes = None
    elif transaction.nested and session._changes is not None:
        session._changes.committing = False


@event.listens_for(RoutedSession, "before_flush")
def _complete(session: RoutedSession, _context: UOWTransaction, _instances: Any) -> None:
    if session._cache is not None and (session._deleted or session.identity_map._modified):
        look_ahead(session, session.changes)
    if session._new:
        new = list(session._new.values())
        own(new, session._tenant)
        if len(new) > 1:
            assign_ids(session, new)


@event.listens_for(RoutedSession, "after_flush")
def _gather(session: RoutedSession, context: UOWTransaction) -> None:
    if session._cache is not None:
        gather(session, context, session.changes)


@event.listens_for(RoutedSession, "before_commit")
def _before_commit(session: RoutedSession) -> None:
    if session._cache is not None:
        session.changes.committing = True


def _settle(session: RoutedSession) -> None:
    """Everything is flushed and nothing committed: the moment for the markers."""
    changes, connection, writer = session._changes, session._connection, session._cache
    if changes is None or writer is None:
        return
    if connection is None and changes:
        connection = session.connection()  # only vouched for, nothing was sent yet
    if connection is not None and not connection.closed:
        settle(driver_connection(connection), changes, writer)
