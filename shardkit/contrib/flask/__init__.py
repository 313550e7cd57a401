"""Flask: each request has its tenant's session, and errors become answers that say nothing about other tenants.

    shards = ShardKit(tenant=from_host("example.com"))
    shards.init_app(app)

    @app.get("/orders")
    def orders():
        return [order.note for order in shards.read.scalars(select(Order))]

A resolver is trusted: a header or a path names a tenant, it does not prove who asks. Check that first, or take the tenant from
what has been checked (``from_login``).
"""

from __future__ import annotations

from shardkit.contrib.flask.extension import Mounted, ShardKit
from shardkit.contrib.flask.fsa import RoutedSession, TenantModel
from shardkit.contrib.flask.resolvers import from_header, from_host, from_login, from_path

__all__ = ["Mounted", "RoutedSession", "ShardKit", "TenantModel", "from_header", "from_host", "from_login", "from_path"]
