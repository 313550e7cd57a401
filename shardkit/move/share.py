"""One tenant's share of a shard, as SQL: which rows of which tables, to be copied, compared, published or removed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from shardkit.core.carving import Carving, Contents, Going, carve
from shardkit.core.hashing import TenantKey
from shardkit.move.ends import End
from shardkit.move.structure import Table, tables_of
from shardkit.sql import statements

SQL = statements("isolate")


@dataclass(frozen=True, slots=True)
class Share:
    """``columns``: of each table that goes along, the column that says whose a row is; None: all rows go, as a copy.

    ``empty`` are tables that have to stay without rows. ``full`` have the whole row as their replica identity.
    """

    tenant: TenantKey
    columns: Mapping[str, str | None]
    empty: tuple[str, ...] = ()
    full: frozenset[str] = frozenset()

    def rows(self, schema: str, table: Table) -> sql.Composable:
        """What a FROM names: the rows that go along."""
        column = self.columns[table.name]
        if column is None:
            return sql.SQL("ONLY {}").format(table.within(schema))
        return sql.SQL("(SELECT * FROM ONLY {} WHERE {})").format(table.within(schema), self._is_its(column))

    def published(self, schema: str, table: Table) -> sql.Composable:
        """What a publication names. Where the replica identity lacks the column all rows are published, since a filter would
        make PostgreSQL refuse every UPDATE and DELETE of every tenant.
        """
        column = self.columns[table.name]
        if column is None or not self.filters(table):
            return table.within(schema)
        return sql.SQL("{} WHERE ({})").format(table.within(schema), self._is_its(column))

    def filters(self, table: Table) -> bool:
        """Whether a publication of *table* can be filtered by the tenant."""
        column = self.columns[table.name]
        return column is not None and (column in table.key or table.name in self.full)

    def its(self, table: Table) -> sql.Composable:
        """A condition on a row of *table*."""
        column = self.columns[table.name]
        return sql.SQL("true") if column is None else self._is_its(column)

    def removal(self, schema: str, table: str, *, at_once: int) -> sql.Composed | None:
        """Remove up to *at_once* rows of the tenant from *table*; None where it has none of its own."""
        column = self.columns.get(table)
        if column is None:
            return None
        return sql.SQL("DELETE FROM ONLY {0} WHERE ctid = ANY (ARRAY(SELECT ctid FROM ONLY {0} WHERE {1} LIMIT {2}))").format(
            sql.Identifier(schema, table), self._is_its(column), at_once
        )

    def any_row(self, schema: str) -> sql.Composed | None:
        """Names of tables among ``empty`` that have rows after all."""
        if not self.empty:
            return None
        return sql.SQL(" UNION ALL ").join(
            sql.SQL("SELECT {} WHERE EXISTS (SELECT FROM {})").format(sql.Literal(name), sql.Identifier(schema, name))
            for name in self.empty
        )

    def _is_its(self, column: str) -> sql.Composed:
        return sql.SQL("{} = {}").format(sql.Identifier(column), sql.Literal(self.tenant))


def survey(end: End, schema: str, *, whole: Sequence[str]) -> Carving:
    """What of each table of *schema* goes along, and what speaks against it."""
    connection = end.on()
    found = connection.execute(SQL["contents"], {"schema": schema}).fetchall()
    filled = _with_rows(connection, schema, [name for name, *_ in found])
    return carve((Contents(name, scoped, safe, name in filled) for name, scoped, safe in found), whole=whole)


def share_of(end: End, schema: str, tenant: TenantKey, carving: Carving) -> Share:
    """The share of *tenant* by *carving*."""
    full = frozenset(name for (name,) in end.on().execute(SQL["tenant_columns"], {"schema": schema}))
    columns = {name: part.column for name, part in carving.parts.items() if part.going is not Going.NOTHING}
    return Share(tenant, columns, tuple(sorted(name for name, part in carving.parts.items() if part.empty)), full)


def tables_of_share(end: End, schema: str, share: Share) -> list[Table]:
    """The tables of *schema* that go along."""
    return [table for table in tables_of(end.on(), schema) if table.name in share.columns]


def _with_rows(connection: psycopg.Connection[Any], schema: str, tables: Sequence[str]) -> frozenset[str]:
    asked = Share("", {}, tuple(tables)).any_row(schema)
    return frozenset() if asked is None else frozenset(name for (name,) in connection.execute(asked))
