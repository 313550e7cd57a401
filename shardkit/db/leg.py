"""A leg is one unit of work's stretch on one server: its route, its opening, and the way on when the shard has moved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from sqlalchemy.engine import Engine

from shardkit.core.names import OPERATOR_ROLE
from shardkit.core.shardmap import Route
from shardkit.db.opening import Opening


class Guide(Protocol):
    """Knows the shard map, and waits (bounded) for a newer one."""

    def onward(self, leg: Leg) -> Leg | None:
        """The leg at its shard's new epoch; None if the shard has not moved."""
        ...


@dataclass(frozen=True, slots=True)
class Leg:
    """``was`` is the schema the unit of work set out for, when it was led on to another.

    A leg on a replica has a ``home``, the one on the primary: whatever a replica cannot serve is done there. It is renewed
    for every statement, since what has to be seen grows with time and with the tenant's own writes. ``replicated``: the server
    has replicas, so a COMMIT that wrote brings home how far its log is. ``took`` is told (shard, seconds) of each statement.
    """

    route: Route
    engine: Engine
    opening: Opening
    guide: Guide
    was: str | None = None
    home: Leg | None = None
    replicated: bool = False
    renew: Callable[[], Leg] | None = field(default=None, compare=False)
    took: Callable[[tuple[int, float]], None] | None = field(default=None, compare=False)

    def current(self, statement: str) -> str:
        """*statement* with the schema's name of today."""
        return statement if self.was is None else statement.replace(f"{self.was}.", f"{self.route.schema}.")


def opening_for(route: Route) -> Opening:
    """Settings of a unit of work on *route*; without a tenant it is operator access, and takes that role."""
    schema = route.schema.encode()
    if route.tenant is None:
        return Opening(schema, role=OPERATOR_ROLE.encode())
    return Opening(schema, str(route.tenant).encode())


def driver_connection(connection: Any) -> Any:
    """The psycopg connection under a SQLAlchemy Connection."""
    return connection.connection.driver_connection
