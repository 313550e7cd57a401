"""The ORM side: routed sessions, tenant-scoped models, id columns."""

from __future__ import annotations
