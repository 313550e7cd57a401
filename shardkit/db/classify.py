"""What kind of statement this is: may it be read outside a transaction, does it change the session itself?"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy.sql import visitors
from sqlalchemy.sql.dml import UpdateBase
from sqlalchemy.sql.elements import TextClause, _IdentifiedClause
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.selectable import CompoundSelect, Select, TextualSelect

_CHANGES_SESSION: Final = re.compile(
    r"(?:^|;)(?:\s|--[^\n]*+|/\*.*?\*/)*+"
    r"(?:set(?!\s+(?:local|constraints|transaction)\b)|reset|discard|listen|load|prepare(?!\s+transaction\b)|deallocate|do|call|declare"
    r"|create\s+(?:local\s+|global\s+)?temp(?:orary)?)\b"
    r"|\bset_config\s*\(|\bpg_(?:try_)?advisory_lock(?:_shared)?\s*\(|\binto\s+temp(?:orary)?\b|\bpg_temp\b",
    re.IGNORECASE | re.DOTALL,
)
PURE_FUNCTIONS: Final = frozenset(
    [
        "count",
        "sum",
        "min",
        "max",
        "avg",
        "coalesce",
        "nullif",
        "greatest",
        "least",
        "lower",
        "upper",
        "length",
        "char_length",
        "abs",
        "round",
        "floor",
        "ceil",
        "concat",
        "now",
        "current_date",
        "current_time",
        "current_timestamp",
        "localtime",
        "localtimestamp",
        "date_trunc",
        "date_part",
        "extract",
        "substring",
        "trim",
        "replace",
        "array_agg",
        "string_agg",
        "json_agg",
        "jsonb_agg",
        "json_build_object",
        "jsonb_build_object",
        "row_number",
        "rank",
        "dense_rank",
        "lag",
        "lead",
        "first_value",
        "last_value",
        "every",
        "bool_and",
        "bool_or",
        "any_value",
        "to_char",
        "mod",
        "sign",
        "pg_current_snapshot",
        "current_setting",
        "pg_is_in_recovery",
        "cardinality",
        "unnest",
    ]
)


CACHED_TABLES: Final[set[str]] = set()
"""Names of tables with rows in the cache; ``orm.cached`` fills it."""
_WRITES: Final = re.compile(r"\b(?:insert|update|delete|merge|truncate|copy)\b", re.IGNORECASE)
_WORD: Final = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Kind:
    """``plain``: a SELECT with no lock, no side effect and no raw text. ``raw``: SQL text written by the program.

    ``cached``: the tables with rows in the cache that it may write to; ``inner``: those of them that parts of it write to, as a
    CTE does. ``lasting``: it leaves the transaction that it runs in
    as it is, for certain: no text of the program is in it that could end one and begin another.
    """

    plain: bool
    raw: bool
    writes: bool
    changes_session: bool
    cached: frozenset[str] = frozenset()
    lasting: bool = False
    inner: frozenset[str] = frozenset()


def changes_session(statement: object) -> bool:
    """Whether a statement, by its text, may leave something behind in the session: settings, locks, temporary tables.

    What a function called by it does is not seen; the role, the path and the tenant are set anew in every transaction.
    """
    text = statement.decode(errors="replace") if isinstance(statement, bytes) else statement
    return not isinstance(text, str) or bool(_CHANGES_SESSION.search(text))


def kind_of(compiled: Any, statement: str) -> Kind:
    """Kind of *statement*; remembered on *compiled*, which SQLAlchemy keeps in its statement cache."""
    if compiled is None:
        return Kind(plain=False, raw=True, writes=False, changes_session=changes_session(statement), cached=_named(statement))
    known: Kind | None = compiled.__dict__.get("_shardkit_kind")
    if known is None:
        known = compiled.__dict__["_shardkit_kind"] = _classify(compiled.statement, statement)
    return known


def _classify(clause: Any, statement: str) -> Kind:
    plain, raw, writes = isinstance(clause, Select | CompoundSelect), False, False
    inner: frozenset[str] = frozenset()
    lasting = isinstance(clause, Select | CompoundSelect | UpdateBase | _IdentifiedClause)
    cached = frozenset() if lasting else _named(statement)
    for part in visitors.iterate(clause) if clause is not None else ():
        lasting = lasting and not getattr(part, "is_literal", False)
        if isinstance(part, TextClause | TextualSelect):
            plain, lasting, raw = False, False, raw or part is clause or isinstance(part, TextualSelect)
            cached |= _named(statement)
            inner |= _named(str(part.element)) if isinstance(part, TextualSelect) else frozenset()
        elif isinstance(part, UpdateBase):
            plain, writes = False, True
            written = {getattr(part.table, "name", "")} & CACHED_TABLES
            cached, inner = cached | written, inner if part is clause else inner | written
        elif (isinstance(part, FunctionElement) and str(getattr(part, "name", "")).lower() not in PURE_FUNCTIONS) or (
            isinstance(part, Select | CompoundSelect) and part._for_update_arg is not None
        ):
            plain = False
    return Kind(plain, raw, writes, changes_session(statement), cached, lasting, inner)


def _named(statement: object) -> frozenset[str]:
    """Cached tables that SQL text which writes something has the name of: rather one too many."""
    if not CACHED_TABLES:
        return frozenset()
    text = statement.decode(errors="replace") if isinstance(statement, bytes) else str(statement)
    if not _WRITES.search(text):
        return frozenset()
    words = {form for word in _WORD.findall(text) for form in (word, word.lower())}  # PHOTOS means photos
    return frozenset(name for name in CACHED_TABLES if name in words or (not _WORD.fullmatch(name) and name in text))
