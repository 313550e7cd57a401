"""What a call says about its session and its key: may the cache answer it at all?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from shardkit.core.hashing import TenantKey
from shardkit.db.leg import driver_connection
from shardkit.orm.cached import Entity, Key, Names
from shardkit.orm.session import RoutedSession

_READ_COMMITTED: Final = (b"BEGIN", b"BEGIN READ ONLY")
_SEVERAL: Final = (tuple, list)
By = str | Sequence[str] | None


def inner_of(session: Any) -> Any:
    """The RoutedSession in what the program holds."""
    return getattr(session, "sync_session", session)


def bypasses(session: RoutedSession) -> bool:
    """Whether this session may see something else than what is committed now."""
    if session._changes:
        return True
    connection = session._connection
    if connection is None or connection.closed:
        return False
    driver = driver_connection(connection)
    return bool(driver.unannounced) or driver.begin not in _READ_COMMITTED


def is_changed(session: RoutedSession) -> bool:
    """Whether it holds changes that a query would flush first."""
    return bool(session._new or session._deleted or session._dirty_states)


def knows(session: RoutedSession, entity: Entity, how: Key, values: tuple[Any, ...]) -> bool:
    """Whether the session has this row already: then it is its instance, fresh or expired, that counts."""
    return how is entity.primary and (entity.mapper._identity_class, values, None) in session.identity_map


def by_names(by: By) -> Names:
    """Attributes as the program named them."""
    return (by,) if isinstance(by, str) else tuple(by or ())


def key_values(key: Any) -> tuple[Any, ...]:
    """A key of one or of more columns."""
    return tuple(key) if isinstance(key, _SEVERAL) else (key,)


def owner_of(entity: Entity, tenant: Any) -> dict[str, Any]:
    """The parameter of a statement that says whose row it is."""
    return {} if entity.tenant is None else {"owner": tenant}


def parameters_of(entity: Entity, values: Sequence[Any], tenant: TenantKey | None) -> dict[str, Any]:
    """Parameters of a statement by key."""
    return {**{f"k{n}": value for n, value in enumerate(values)}, **owner_of(entity, tenant)}
