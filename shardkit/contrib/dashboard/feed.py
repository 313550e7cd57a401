"""Takes the pulse of a cluster while somebody looks, once for all who do, and hands it out as it comes."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

from shardkit.core.pulse import Pulse
from shardkit.errors import ShardKitError

log = logging.getLogger("shardkit.dashboard")
EVERY_S: Final = 1.0
KEEP_ALIVE_S: Final = 10.0
CLOSE_S: Final = 10.0


class Source(Protocol):
    """What gives pulses: a PulseWatch."""

    def take(self) -> Pulse:
        """The cluster now. Raises ShardKitError."""
        ...

    def close(self) -> None:
        """Give connections up."""
        ...


class Feed:
    """One thread that looks every *every_s* seconds, from the first viewer to the last."""

    def __init__(self, open_source: Callable[[], Source], *, every_s: float = EVERY_S) -> None:
        self._open, self._every_s = open_source, every_s
        self._news = threading.Condition()
        self._viewers, self._number, self._text = 0, 0, ""
        self._closed = False
        self._thread: threading.Thread | None = None

    def once(self) -> str:
        """One look, as JSON, for those who cannot listen."""
        source = self._open()
        try:
            return _look(source)
        finally:
            source.close()

    def events(self) -> Iterator[str]:
        """Server-sent events: one for every look, and a comment now and then, by which a viewer that is gone is noticed."""
        self._join()
        try:
            seen = 0
            while not self._closed:
                with self._news:
                    fresh = self._news.wait_for(lambda seen=seen: self._closed or self._number > seen, timeout=KEEP_ALIVE_S)  # type: ignore[misc]  # a lambda with a default
                    seen, text = self._number, self._text
                if not self._closed:
                    yield f"id: {seen}\ndata: {text}\n\n" if fresh else ": still here\n\n"
        finally:
            with self._news:
                self._viewers -= 1
                self._news.notify_all()

    def close(self) -> None:
        """Send every viewer away, and stop looking."""
        with self._news:
            self._closed = True
            self._news.notify_all()
        if self._thread is not None:
            self._thread.join(CLOSE_S)

    def _join(self) -> None:
        with self._news:
            self._viewers += 1
            if self._viewers == 1:
                self._thread = threading.Thread(target=self._run, name="shardkit-dashboard", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        source = self._open()
        try:
            while True:
                began = time.monotonic()
                text = _look(source)
                with self._news:
                    self._number, self._text = self._number + 1, text
                    self._news.notify_all()
                    left_s = self._every_s - (time.monotonic() - began)
                    self._news.wait_for(lambda: self._closed or not self._viewers, timeout=max(0.05, left_s))
                    if self._closed or not self._viewers:
                        return
        finally:
            source.close()


def _look(source: Source) -> str:
    found: dict[str, Any]
    try:
        found = source.take().as_json()
    except ShardKitError as exc:
        found = {"error": str(exc.args[0]) if exc.args else type(exc).__name__}
    except Exception as exc:
        log.exception("the cluster could not be looked at")
        found = {"error": f"the cluster could not be looked at: {type(exc).__name__}"}
    return json.dumps(found, default=str)
