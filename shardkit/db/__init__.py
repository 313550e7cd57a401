"""The one door to PostgreSQL: connections, engines, and what goes before a transaction's first statement."""

from __future__ import annotations
