"""Tenants share a shard, so scoped models carry ``tenant_id``, and every ORM query of a tenant's session is filtered by it.

The filter is the first line; the second is row-level security in PostgreSQL (``shardkit.protect`` in sql/server.sql), which
also stops raw SQL that forgets the WHERE.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import DDL, BigInteger, DefaultClause, Index, Integer, String, Text, UniqueConstraint, bindparam, event, text
from sqlalchemy.orm import Mapped, Mapper, mapped_column, with_loader_criteria
from sqlalchemy.schema import Table
from sqlalchemy.sql import visitors
from sqlalchemy.sql.selectable import Select

from shardkit.core.hashing import TenantKey
from shardkit.errors import FanOutRefusedError, SettingsError, TenantMismatchError

TENANT_COLUMN: Final = "tenant_id"
TENANT_PARAMETER: Final = "shardkit_tenant"
_THE_TENANT: Final = text("nullif(current_setting('shardkit.tenant'), '')")  # NULL, and so an error, for an operator
_THE_INT_TENANT: Final = text("nullif(current_setting('shardkit.tenant'), '')::bigint")


class TenantScoped:
    """Mixin of a model whose rows belong to tenants: adds ``tenant_id``, filled and filtered by the session.

    It leads every unique constraint and index of the table (a unique e-mail address is unique within its tenant; without
    it a tenant would learn which keys other tenants use), and ``(tenant_id, primary key)`` is unique, so that a replica
    identity can carry it. ``session.get(Order, oid)`` still takes the id alone. For a cluster with int tenants annotate
    ``tenant_id: Mapped[int]`` in the model, and name this mixin before the base.

    PostgreSQL guards the table itself. A view shows every tenant's rows unless it was made ``WITH (security_invoker)``, a
    materialized view always does, and a partition named directly is guarded only if ``shardkit.protect`` was called for it.
    """

    if TYPE_CHECKING:
        tenant_id: Mapped[Any]
    else:
        tenant_id: Mapped[str] = mapped_column(nullable=False, sort_order=1)

    def __init_subclass__(cls, **options: Any) -> None:
        if _only_annotated(cls):  # SQLAlchemy would take the mixin's column with the mixin's type
            cls.tenant_id = mapped_column(nullable=False, sort_order=1)
        super().__init_subclass__(**options)


def _only_annotated(cls: type[Any]) -> bool:
    return TENANT_COLUMN in inspect.get_annotations(cls) and TENANT_COLUMN not in cls.__dict__


CRITERIA: Final = with_loader_criteria(
    TenantScoped,
    lambda cls: cls.tenant_id == bindparam("shardkit_tenant"),  # spelled out: a lambda may close over values only
    include_aliases=True,
    propagate_to_loaders=False,  # every statement of the session gets it anyway, also a loader's
)
"""The filter of SELECTs: one object with one parameter, so that the statement cache serves all tenants."""


def criteria_of(tenant: TenantKey) -> Any:
    """The filter of ORM UPDATE and DELETE, whose parameters are values to set."""
    return with_loader_criteria(
        TenantScoped, lambda cls: cls.tenant_id == tenant, include_aliases=True, propagate_to_loaders=False
    )


_MAPPED: Final = frozenset({"parententity", "parentmapper"})


def of_tenants(statement: Any, tenants: Sequence[TenantKey]) -> Any:
    """*statement* filtered to the rows of *tenants*. Raises FanOutRefusedError where a scoped table is not used as a model."""
    if not isinstance(statement, Select):
        raise FanOutRefusedError(
            "tenants= filters a plain select() only: in a union, give each part a WHERE on its tenant_id. It was not sent"
        )
    for part in visitors.iterate(statement):
        named: list[Any] = [part]
        if isinstance(part, Select):
            named = [*part._raw_columns, *part._from_obj, *(join[0] for join in part._setup_joins)]
        for used in named:
            table = used if isinstance(part, Select) else getattr(used, "table", None)
            if isinstance(table, Table) and table.info.get("shardkit_scoped") and not _MAPPED & used._annotations.keys():
                raise FanOutRefusedError(
                    f"rows of {table.name} cannot be filtered by tenant where the table is used without its model: "
                    "it was not sent to any shard"
                )
    return statement.options(
        with_loader_criteria(
            TenantScoped, lambda cls: cls.tenant_id.in_(tenants), include_aliases=True, propagate_to_loaders=False
        )
    )


def own(instances: Iterable[Any], tenant: TenantKey | None) -> None:
    """Give *tenant* to new scoped instances that have none; refuse another tenant's."""
    for instance in instances:
        if isinstance(instance, TenantScoped):
            theirs: Any = instance.tenant_id
            if theirs is None and tenant is not None:
                instance.tenant_id = tenant
            elif theirs is None:
                raise TenantMismatchError(
                    f"a new {type(instance).__name__} in an operator's session needs its tenant_id; nothing was written"
                )
            elif tenant is not None and (type(theirs) is not type(tenant) or theirs != tenant):
                raise TenantMismatchError(
                    f"a new {type(instance).__name__} belongs to another tenant than the session; nothing was written"
                )


@event.listens_for(Mapper, "after_mapper_constructed")
def _scope_once(_mapper: Mapper[Any], cls: type[Any]) -> None:
    if not issubclass(cls, TenantScoped):
        return
    table = cls.__table__  # type: ignore[attr-defined]  # a mapped class has one
    if TENANT_COLUMN not in table.c:
        raise SettingsError(
            f"table {table.name!r} of the scoped model {cls.__name__} has no {TENANT_COLUMN} of its own, so PostgreSQL could "
            "not protect its rows: use single-table inheritance, or declare the column in this class too"
        )
    if "int" in str(inspect.get_annotations(cls).get(TENANT_COLUMN)) and not isinstance(table.c[TENANT_COLUMN].type, Integer):
        raise SettingsError(
            f"{cls.__name__}: name TenantScoped before the declarative base, or its int {TENANT_COLUMN} is lost"
        )
    if not table.info.setdefault("shardkit_scoped", False):
        table.info["shardkit_scoped"] = True
        scope(table)


def scope(table: Table) -> None:
    """Put ``tenant_id`` at the head of *table*'s unique keys and indexes, and protect it when it is created."""
    tenant = table.c[TENANT_COLUMN]
    default = _THE_TENANT
    if isinstance(tenant.type, Integer):
        tenant.type, default = BigInteger(), _THE_INT_TENANT
    elif type(tenant.type) is String and tenant.type.length is None:
        tenant.type = Text()
    if tenant.server_default is None:
        tenant.server_default = DefaultClause(default)
    for constraint in [c for c in table.constraints if isinstance(c, UniqueConstraint)]:
        columns = list(constraint.columns)
        if columns[0] is not tenant:
            table.constraints.remove(constraint)
            table.append_constraint(UniqueConstraint(tenant, *(c for c in columns if c is not tenant), name=constraint.name))
    for index in list(table.indexes):
        if list(index.columns)[:1] != [tenant]:
            table.indexes.remove(index)
            expressions = [e for e in index.expressions if e is not tenant]
            Index(index.name, tenant, *expressions, unique=index.unique, **index.dialect_kwargs)
    key = list(table.primary_key.columns)
    if tenant not in key and key:
        table.append_constraint(UniqueConstraint(tenant, *key, name=f"{table.name}_tenant_key"))
    event.listen(table, "after_create", DDL("SELECT shardkit.protect('%(fullname)s')"))  # type: ignore[no-untyped-call]  # SQLAlchemy's
