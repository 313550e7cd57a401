"""The guide of a read that a replica may serve: it sets out there where the replica can be new enough, else to the primary."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy.engine import Engine

from shardkit.catalog.router import Router
from shardkit.core.hashing import TenantKey
from shardkit.core.lag import Position, lsn_text
from shardkit.core.shardmap import Route
from shardkit.core.token import Token
from shardkit.db.leg import Leg
from shardkit.db.opening import ReplicaOpening


class ReplicaGuide:
    """Sets out for a replica at most *max_lag_s* behind that shows what was committed by *written* and by the *tokens*.

    *written* gives the moment of the last own write, by this process' monotonic clock. A token of another epoch of the shard,
    or of another shard, says nothing about this server's log: then it is the primary.
    """

    __slots__ = ("_max_lag_s", "_router", "_tokens", "_wait_ms", "_written")

    def __init__(
        self,
        router: Router,
        *,
        max_lag_s: float,
        wait_s: float,
        written: Callable[[], float | None],
        tokens: tuple[Token, ...],
    ) -> None:
        self._router, self._max_lag_s, self._written, self._tokens = router, max_lag_s, written, tokens
        self._wait_ms = str(round(wait_s * 1000)).encode()

    def set_out(self, tenant: TenantKey | None, shard: int | None) -> tuple[Leg, Engine]:
        """Leg and engine of a unit of work that begins now."""
        home, engine = self._router.set_out(tenant, shard)
        leg = self._on_replica(home)
        return (home, engine) if leg is None else (leg, self._router.replica_engine(leg.engine, leg.route.schema))

    def _on_replica(self, home: Leg, *, only: str | None = None) -> Leg | None:
        """The leg on a replica that will do now; None: there is none."""
        router, route = self._router, home.route
        server = router.map.servers.get(route.server)
        if server is None or not server.replicas or not all(_speaks_of(token, route) for token in self._tokens):
            return None
        after = self._latest()
        if after is None and self._tokens:
            return None
        choice = router.replicas.choose(server, max_lag_s=self._max_lag_s, written_s=self._written(), after=after, only=only)
        if choice is None:
            return None
        opening = ReplicaOpening(
            home.opening.schema,
            home.opening.tenant,
            home.opening.role,
            wanted=lsn_text(choice.requirement.lsn).encode(),
            wait_ms=self._wait_ms,
        )
        engine = router.engines.of_replica(server, choice.dsn)
        return Leg(
            route,
            engine,
            opening,
            router,
            home=home,
            renew=lambda: self._on_replica(home, only=choice.dsn) or home,
            took=home.took,
        )

    def _latest(self) -> Position | None:
        """The position all tokens ask for; None without tokens, or where they are of different timelines."""
        timelines = {token.position.timeline for token in self._tokens}
        return max(token.position for token in self._tokens) if len(timelines) == 1 else None


def _speaks_of(token: Token, route: Route) -> bool:
    return (token.shard, token.epoch) == (route.shard, route.epoch)
