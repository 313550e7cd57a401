"""When the flush of a commit is one INSERT and nothing else, so that COMMIT may travel with it.

The outcome stays known: the server answers both, and skips COMMIT if the INSERT failed. It must be the *last* statement, and
nothing may look at its result and still say no: no UPDATE (whose row count is checked), no second object, no pending
relationship, no listener of the program that could run SQL or raise between the two.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy.orm import Mapper, Session
from sqlalchemy.orm.attributes import instance_state
from sqlalchemy.orm.interfaces import MANYTOONE

from shardkit.orm.cached import INFO

OURS: Final = 1
"""Listener of the session's own, for entities in the cache; those are never written this way."""
OURS_BEFORE: Final = 2
"""Listeners of the session's own that hear of a flush before it begins."""
GLOBAL_UNIQUE = "shardkit_global_unique"
"""Key in the info of a column whose values are unique over all shards."""


def is_lone_insert(session: Session) -> bool:
    """Whether flushing *session* now means one INSERT of one object, for certain."""
    new = session._new
    if len(new) != 1 or session._deleted or session.identity_map._modified or session.in_nested_transaction():
        return False
    dispatch = session.dispatch
    if len(dispatch.after_flush) > OURS or len(dispatch.before_commit) > OURS:
        return False
    if len(dispatch.before_flush) > OURS_BEFORE or dispatch.after_flush_postexec or session.twophase:
        return False
    (instance,) = new.values()
    state = instance_state(instance)
    mapper = state.mapper
    return (
        _is_simple(mapper)
        and INFO not in getattr(mapper.local_table, "info", {})
        and not any(key in state.dict for key in _collections(mapper))
    )


def _is_simple(mapper: Mapper[Any]) -> bool:
    listeners = mapper.dispatch
    if any(column.info.get(GLOBAL_UNIQUE) for table in mapper.tables for column in table.columns):
        return False  # a claim is written before it
    if len(mapper.tables) != 1 or listeners.before_insert or listeners.after_insert:
        return False
    # A version is looked at after the INSERT, and without RETURNING another statement fetches what the server filled in.
    return mapper.version_id_col is None and bool(mapper.tables[0].implicit_returning)


def _collections(mapper: Mapper[Any]) -> list[str]:
    """Relationships whose content can make a flush send more than this object's own INSERT."""
    known: list[str] | None = mapper.__dict__.get("_shardkit_collections")
    if known is None:
        known = mapper.__dict__["_shardkit_collections"] = [
            r.key for r in mapper.relationships if r.direction is not MANYTOONE or r.post_update
        ]
    return known
