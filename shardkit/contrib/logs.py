"""Structured logs: each record says whose unit of work it belongs to, and is one line of JSON if you like.

handler.addFilter(TenantFields(kit))
handler.setFormatter(JsonLines())
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any, Final

from shardkit.contrib.identify import Kit, of_current, of_error

_USUAL: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "shardkit"}


class TenantFields(logging.Filter):
    """Lets every record through, with ``record.shardkit``: tenant (a digest), shard, server, epoch, map version."""

    def __init__(self, kit: Kit, *, secret: str = "") -> None:
        super().__init__()
        self._kit, self._secret = kit, secret

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the fields."""
        record.shardkit = of_current(self._kit, secret=self._secret)
        return True


class JsonLines(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, ours under ``shardkit``, and the *extra* of the call."""

    def format(self, record: logging.LogRecord) -> str:
        """*record* as JSON."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **{name: value for name, value in vars(record).items() if name not in _USUAL},
        }
        ours = dict(getattr(record, "shardkit", {}))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
            ours |= of_error(record.exc_info[1])
        if ours:
            line["shardkit"] = ours
        return json.dumps(line, default=str)
