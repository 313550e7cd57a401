"""Which tables go along when one tenant is carried out of its shard, and by which rows."""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from shardkit.core.names import OWN_PREFIX, PROGRESS_TABLE, VERSION_TABLE


class Going(enum.Enum):
    """What of a table goes along."""

    ITS_ROWS = "its rows"
    WHOLE = "the whole table, as a copy"
    NOTHING = "nothing"


class Contents(NamedTuple):
    """A table as it is found: whether it has a ``tenant_id``, row-level security in force, and rows."""

    table: str
    tenant_column: bool
    protected: bool
    rows: bool


class Part(NamedTuple):
    """What of one table goes along, by which ``column``; ``empty`` is said of one that is left because it has no rows."""

    going: Going
    column: str | None = None
    empty: bool = False


class Carving(NamedTuple):
    """What of each table goes along, and why it cannot be done: (what, remedy)."""

    parts: Mapping[str, Part]
    refused: tuple[tuple[str, str], ...]


TENANT_COLUMN: Final = "tenant_id"
OURS: Final[Mapping[str, Part]] = MappingProxyType(
    {
        VERSION_TABLE: Part(Going.WHOLE),  # the new shard is as far migrated as the old one
        PROGRESS_TABLE: Part(Going.WHOLE),
        "shardkit_claims": Part(Going.WHOLE),  # says of keys reserved for the tenant's rows whether those were committed
        "shardkit_inbox": Part(Going.ITS_ROWS, "to_tenant"),  # says which effects on the tenant were applied
    }
)
"""shardkit's own tables. Others stay: the registry is sharded by key, and outboxes are emptied where they are."""


def carve(tables: Iterable[Contents], *, whole: Collection[str] = ()) -> Carving:
    """Sort *tables*; those named in *whole* may go along as copies. Rows that nobody can tell the owner of are refused."""
    parts: dict[str, Part] = {}
    refused: list[tuple[str, str]] = []
    for name, tenant_column, protected, rows in tables:
        parts[name] = _part(name, tenant_column=tenant_column, whole=name in whole)
        if name in whole and (tenant_column or _is_ours(name)):
            refused.append((f"table {name} is not one to be copied wholly", "leave out --whole: what goes of it is known"))
        elif tenant_column and not protected and not _is_ours(name):
            refused.append(
                (
                    f"table {name} has no row-level security, so what is left of the tenant could not be hidden",
                    f"SELECT shardkit.protect('...{name}') in the shard",
                )
            )
        elif parts[name].empty and rows:
            refused.append(
                (
                    f"table {name} has rows and no column {TENANT_COLUMN}: nobody can tell whose they are",
                    f"add the column (TenantScoped), or, if the tenant needs a copy of all of them, --whole {name}",
                )
            )
    unknown = sorted(set(whole) - parts.keys())
    refused += [(f"there is no table {name}", "correct --whole") for name in unknown]
    return Carving(MappingProxyType(parts), tuple(refused))


def _part(name: str, *, tenant_column: bool, whole: bool) -> Part:
    if name in OURS:
        return OURS[name]
    if _is_ours(name):
        return Part(Going.NOTHING)
    if tenant_column:
        return Part(Going.ITS_ROWS, TENANT_COLUMN)
    return Part(Going.WHOLE) if whole else Part(Going.NOTHING, empty=True)


def _is_ours(name: str) -> bool:
    return name.startswith(OWN_PREFIX) or name == VERSION_TABLE
