"""What PostgreSQL is asked where the cache may not answer: the same rows, through the program's own session."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select

from shardkit.orm.cached import Entity, Key


async def one(session: Any, entity: Entity, how: Key, values: tuple[Any, ...], with_for_update: Any) -> Any:
    """The instance by its primary or a unique key."""
    if how is entity.primary:
        return await session.get(entity.cls, values, with_for_update=with_for_update)
    statement = select(entity.cls).where(*(c == v for c, v in zip(how.columns, values, strict=True)))
    if with_for_update is not None and with_for_update is not False:
        options = with_for_update if isinstance(with_for_update, dict) else {}
        statement = statement.with_for_update(**options)
    return (await session.scalars(statement)).one_or_none()


async def newest(session: Any, entity: Entity, how: Key, values: tuple[Any, ...]) -> Sequence[Any]:
    """The newest instances by a list key."""
    assert how.listing is not None
    statement = select(entity.cls).where(*(c == v for c, v in zip(how.columns, values, strict=True)))
    statement = statement.order_by(*(c.desc() for c in how.order)).limit(how.listing.limit)
    found: Sequence[Any] = (await session.scalars(statement)).all()
    return found
