"""The catalog: the small database that stores the shard map. It is a hint; PostgreSQL's own schemas are the authority."""

from __future__ import annotations
