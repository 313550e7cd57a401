"""The few things that are not the same in both colours."""

from __future__ import annotations

from sqlalchemy.engine import Engine

ASYNC = False


def close(engine: Engine) -> None:
    """Close the idle connections of *engine*."""
    engine.dispose()
