"""Interprets ``core.moving`` on two PostgreSQL servers, with the catalog as its journal."""

from __future__ import annotations
