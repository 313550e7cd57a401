"""Pytest plugin inside SQLAlchemy's own test run: every Session becomes a routed one, on a shard it cannot find by itself.

Each transaction of a Session starts on a connection whose ``search_path`` leads to an empty schema. In the mode ``routed`` our
session carries it to the shard's schema; in ``control`` nothing does, so that whatever passes there proves nothing.
"""

from __future__ import annotations

import functools
import os

import sqlalchemy.dialects.postgresql.provision  # what SQLAlchemy loads for its own dialects by their module
import sqlalchemy.orm
from sqlalchemy import Table, event
from sqlalchemy.dialects import registry
from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm.session import Session, _SessionCloseState
from sqlalchemy.pool import Pool

from shardkit.core.shardmap import Route
from shardkit.db import dialect
from shardkit.db.engines import _handed_back
from shardkit.db.leg import Leg, driver_connection
from shardkit.db.opening import Opening
from shardkit.db.wire import AsyncRoutedConnection, AsyncRoutedCursor, Routed, RoutedConnection, RoutedCursor
from shardkit.orm.session import RoutedSession

ROUTED = os.environ["SHARDKIT_SUITE"] == "routed"
SHARD_SCHEMA, EMPTY_SCHEMA = "s0000_e1", "nothing_here"
ROUTE = Route("suite", 0, SHARD_SCHEMA, "pg1", 1)
dropped = []
OPENING = Opening(SHARD_SCHEMA.encode(), b"suite", role=b"none")  # the tests also make tables in their sessions

registry.register("postgresql.shardkit_async", dialect.__name__, dialect.AsyncRoutedDialect.__name__)
dialect.AsyncRoutedDialect.get_async_dialect_cls = classmethod(lambda cls, url: cls)  # SQLAlchemy's tests name the async one


class OneShard:
    """The guide of a session whose server is the engine under test."""

    engine = None

    def set_out(self, tenant, shard):
        return Leg(ROUTE, self.engine, OPENING, self), self.engine

    def onward(self, leg):
        return None


class SuiteSession(RoutedSession):
    """Our session, made with the arguments of SQLAlchemy's."""

    def __init__(self, bind=None, *, close_resets_only=True, **options):
        super().__init__(guide=OneShard(), tenant=ROUTE.tenant, bind=bind, **options)
        if close_resets_only in (True, sqlalchemy.orm.session._NoArg.NO_ARG):  # ours are never used again; the tests' are
            self._close_state = _SessionCloseState.CLOSE_IS_RESET

    def get_bind(self, mapper=None, **given):
        configured = Session.get_bind(self, mapper, **given)
        self.by_hand = not (isinstance(configured, Engine) and isinstance(configured.dialect, dialect._Routing))
        if self.by_hand or not ROUTED:
            return configured  # a Connection is the program's own business, also in a routed session; and so is SQLite
        self._guide.engine = configured
        return super().get_bind(mapper)


sqlalchemy.orm.Session = sqlalchemy.orm.session.Session = SuiteSession
sqlalchemy.orm.sessionmaker.__init__.__kwdefaults__["class_"] = SuiteSession
AsyncSession.sync_session_class = SuiteSession


@event.listens_for(SuiteSession, "after_begin")
def _lead_astray(session, transaction, connection):
    driver = driver_connection(connection)
    if not (transaction.nested or session.by_hand):
        driver.pgconn.exec_(b"SET search_path TO " + EMPTY_SCHEMA.encode())
        driver.astray = True


@event.listens_for(Pool, "checkin")
def _lead_home(connection, record):
    driver = getattr(connection, "_connection", connection)
    if not isinstance(driver, Routed):
        return  # the connection was lost, or is one of SQLite's, which some tests use beside ours
    if getattr(driver, "astray", False):
        driver.pgconn.exec_(b"RESET search_path")
        driver.astray = False
    _handed_back(connection, record)


@event.listens_for(Table, "after_drop")
def _outdate(table, connection, **options):
    """The tests drop a table and make another of the same name, with other types, a hundred times a minute."""
    dropped.append(table.name)


@event.listens_for(Pool, "checkout")
def _forget_plans(connection, record, fairy):
    """Statements prepared for tables that are no more: ours outlive a ROLLBACK, and with it the test that made them."""
    driver = getattr(connection, "_connection", connection)
    if isinstance(driver, Routed) and getattr(driver, "dropped", 0) != len(dropped):
        driver.pgconn.exec_(b"DEALLOCATE ALL")
        driver._prepared.clear()
        driver._prepared._to_flush.clear()
        driver.opening_prepared, driver.dropped = False, len(dropped)


@event.listens_for(Engine, "do_connect")
def _connect(the_dialect, record, arguments, parameters):
    if isinstance(the_dialect, dialect.AsyncRoutedDialect):
        parameters["async_creator_fn"] = functools.partial(
            AsyncRoutedConnection.connect, autocommit=True, cursor_factory=AsyncRoutedCursor
        )
    elif isinstance(the_dialect, dialect.RoutedDialect):
        return RoutedConnection.connect(*arguments, **parameters, autocommit=True, cursor_factory=RoutedCursor)
    return None
