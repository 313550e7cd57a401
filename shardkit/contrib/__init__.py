"""Thin, optional ends for frameworks; each module needs the extra of its name (``pip install shardkit[fastapi]``)."""

from __future__ import annotations
