"""Sharded multi-tenant data access for PostgreSQL and SQLAlchemy."""

from __future__ import annotations
