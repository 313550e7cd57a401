"""Flask-SQLAlchemy's ``db.session`` as a session of the request's tenant, for an application that was written without tenants.

    db = SQLAlchemy(session_options={"class_": RoutedSession}, model_class=TenantModel)

Flask-SQLAlchemy itself is not imported here: it makes the session and gives itself as *db*.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import inspect
from sqlalchemy.orm import DeclarativeBase

from shardkit.contrib.flask.extension import mounted, on_leave
from shardkit.errors import SessionError, TenantMismatchError
from shardkit.orm import session as routed
from shardkit.orm.tenancy import TenantScoped


class TenantModel(TenantScoped, DeclarativeBase):
    """For ``SQLAlchemy(model_class=TenantModel)``: every model gets a ``tenant_id``, filled and filtered by the session."""


class RoutedSession(routed.RoutedSession):
    """``db.session``: of the tenant it was first used for, until the request ends or ``db.session.remove()``.

    Outside a request, make the tenant current with ``with shards.kit.tenant("acme"):``. Raises NoTenantError without one;
    SessionError where another tenant is current than the session's; TenantMismatchError for a model that is not TenantScoped.
    """

    def __init__(self, db: Any = None, **options: Any) -> None:
        self._db, self._kit = db, mounted().kit
        super().__init__(**self._kit.session_arguments(), **options)
        if db is not None:
            on_leave(db.session.remove)

    def get_bind(self, mapper: Any = None, *, bind: Any = None, clause: Any = None, **keywords: Any) -> Any:
        """The engine of the tenant's server."""
        if self._kit.current_tenant != self._tenant:
            raise SessionError(
                "this db.session belongs to the tenant of another block or request: call db.session.remove() between two "
                "tenants; nothing was sent"
            )
        cls = inspect(mapper).class_ if mapper is not None else None
        table = getattr(cls, "__table__", None)
        if cls is not None and not issubclass(cls, TenantScoped) and table is not None and table.schema is None:
            raise TenantMismatchError(
                f"{cls.__name__} is not TenantScoped, so all tenants of a shard would share its rows; nothing was sent. "
                "Use SQLAlchemy(model_class=TenantModel), or name the mixin TenantScoped in the model"
            )
        return super().get_bind(mapper, bind=bind, clause=clause, **keywords)
