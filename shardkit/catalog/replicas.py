"""The guide of a read that a replica may serve: it sets out there where the replica can be new enough, else to the primary."""

from __future__ import annotations

from sqlalchemy.engine import Engine

from shardkit.catalog.router import Router
from shardkit.core.hashing import TenantKey
from shardkit.core.lag import Position, lsn_text
from shardkit.core.shardmap import Route
from shardkit.core.token import Token
from shardkit.db.leg import Leg
from shardkit.db.wire import ReplicaOpening


class ReplicaGuide:
    """Sets out for a replica at most *max_lag_s* behind that shows what was committed by *written_s* and by the *tokens*.

    *written_s* is a moment of this process' monotonic clock. A token of another epoch of the shard, or of another shard, says
    nothing about this server's log: then it is the primary.
    """

    __slots__ = ("_max_lag_s", "_router", "_tokens", "_wait_ms", "_written_s")

    def __init__(
        self, router: Router, *, max_lag_s: float, wait_s: float, written_s: float | None, tokens: tuple[Token, ...]
    ) -> None:
        self._router, self._max_lag_s, self._written_s, self._tokens = router, max_lag_s, written_s, tokens
        self._wait_ms = str(round(wait_s * 1000)).encode()

    def set_out(self, tenant: TenantKey | None, shard: int | None) -> tuple[Leg, Engine]:
        """Leg and engine of a unit of work that begins now."""
        router = self._router
        home, engine = router.set_out(tenant, shard)
        route = home.route
        server = router.map.servers.get(route.server)
        if server is None or not server.replicas or not all(_speaks_of(token, route) for token in self._tokens):
            return home, engine
        after = self._latest()
        if after is None and self._tokens:
            return home, engine
        choice = router.replicas.choose(server, max_lag_s=self._max_lag_s, written_s=self._written_s, after=after)
        if choice is None:
            return home, engine
        found = router.replica_engine(server, choice.dsn, route.schema)
        opening = ReplicaOpening(
            home.opening.schema,
            home.opening.tenant,
            home.opening.role,
            wanted=lsn_text(choice.requirement.lsn).encode(),
            wait_ms=self._wait_ms,
        )
        return Leg(route, router.engines.of_replica(server, choice.dsn), opening, router, home=home), found

    def _latest(self) -> Position | None:
        """The position all tokens ask for; None without tokens, or where they are of different timelines."""
        timelines = {token.position.timeline for token in self._tokens}
        return max(token.position for token in self._tokens) if len(timelines) == 1 else None


def _speaks_of(token: Token, route: Route) -> bool:
    return (token.shard, token.epoch) == (route.shard, route.epoch)
