"""The one way to PostgreSQL: connections, engines, transactions, and what shardkit keeps on a server."""

from __future__ import annotations
