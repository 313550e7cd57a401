"""Keeps the freshest shard map in memory: told by NOTIFY, asked now and then, and saved for a day without the catalog.

One thread a process, for sync and async alike: it does no more than replace one reference. Nobody waits for it who can
already route (law 9); who met a fence waits, bounded, for a newer map.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from shardkit.catalog import saved
from shardkit.catalog.rows import load_map
from shardkit.core.names import MAP_CHANNEL, program_name
from shardkit.core.shardmap import ShardMap
from shardkit.db.connect import announce, connect_admin, listen, wait_for_notice
from shardkit.db.forked import in_forked_child
from shardkit.errors import CatalogError, CatalogUnavailableError, ServerError
from shardkit.settings import Settings

log = logging.getLogger("shardkit.catalog")


class MapWatch:
    """Holds ``map``. ``refresh`` asks the catalog now; the thread started by the first look asks by itself."""

    def __init__(self, settings: Settings, *, follow: bool = True) -> None:
        self._settings, self._follow = settings, follow
        self._changed = threading.Condition()
        self._asking = threading.Lock()
        self._wanted = threading.Event()
        self._closed = False
        self._connection: Any = None
        self._on_change: list[Callable[[ShardMap], None]] = []
        self.map = self._first_map()
        in_forked_child(self._after_fork)
        self._thread: threading.Thread | None = None
        self._start()

    def on_change(self, call: Callable[[ShardMap], None]) -> None:
        """Call *call* with every newer map, from the thread that found it."""
        self._on_change.append(call)

    def refresh(self) -> ShardMap:
        """The map after asking the catalog. Raises CatalogUnavailableError if it does not answer."""
        with self._asking:
            try:
                found = self._load()
            except Exception as exc:
                self._drop()
                if isinstance(exc, CatalogError):
                    raise
                raise CatalogUnavailableError(
                    f"the catalog does not answer; tenants are routed by the map in memory, version {self.map.version}"
                ) from exc
            if found.version > self.map.version:
                self._replace(found)
        return self.map

    def wait_for(self, newer: Callable[[ShardMap], bool], *, timeout_s: float) -> ShardMap | None:
        """The first map for which *newer* holds, within *timeout_s*; None if none came. Asks the catalog meanwhile."""
        deadline, pause = time.monotonic() + timeout_s, 0.001
        while not newer(self.map):
            try:
                self.refresh()
            except CatalogError as exc:
                log.warning("while waiting for a newer map: %s", exc)
            left = deadline - time.monotonic()
            if newer(self.map):
                break
            if left <= 0:
                return None
            with self._changed:
                self._changed.wait(min(pause, left))
            pause = min(pause * 2, 0.1)
        return self.map

    def told(self, newer: Callable[[ShardMap], bool], *, timeout_s: float) -> bool:
        """Whether the thread hears of a map for which *newer* holds, within *timeout_s*. Asks nobody: a flip has work to do."""
        with self._changed:
            return self._changed.wait_for(lambda: newer(self.map), timeout_s)

    def close(self) -> None:
        """Stop asking."""
        self._closed = True
        self._wanted.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=self._settings.connect_timeout_s + 1)
        with self._asking:
            self._drop()

    def _after_fork(self) -> None:
        """Locks may be held by threads that are not here, and the connection is the parent's."""
        self._changed, self._asking, self._wanted = threading.Condition(), threading.Lock(), threading.Event()
        self._connection = None
        if not self._closed:
            self._start()

    def _first_map(self) -> ShardMap:
        known = saved.read(self._settings.map_file)
        try:
            self._connection = self._connect()
            found = load_map(self._connection, known)
        except ServerError as exc:
            if known is None:
                raise CatalogUnavailableError(
                    f"{exc.args[0]}. There is no saved map to start from either (setting map_file)"
                ) from exc
            log.warning("the catalog does not answer: started from the saved map, version %s", known.version)
            return known
        except BaseException:
            self._drop()
            raise
        if found is not known:
            saved.write(self._settings.map_file, found)
        return found

    def _load(self) -> ShardMap:
        if self._connection is not None:
            try:
                return load_map(self._connection, self.map)
            except CatalogError:
                raise
            except Exception:  # noqa: BLE001  # a connection that was idle may have died unseen; a new one knows
                self._drop()
        self._connection = self._connect()
        return load_map(self._connection, self.map)

    def _connect(self) -> Any:
        return connect_admin(self._settings.catalog_url, self._settings)

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _replace(self, found: ShardMap) -> None:
        with self._changed:
            self.map = found
            self._changed.notify_all()
        for call in self._on_change:
            call(found)
        saved.write(self._settings.map_file, found)

    def _start(self) -> None:
        if self._follow:
            self._thread = threading.Thread(target=_keep_asking, args=(weakref.ref(self),), name="shardkit-map", daemon=True)
            self._thread.start()


def _keep_asking(alive: weakref.ref[MapWatch]) -> None:
    """The thread's work: listen, and ask when told, or when the poll interval has passed. Ends with its watch."""
    listening: Any = None
    said = -1  # the version that pg_stat_activity shows, for `shardkit doctor`
    try:
        while (watch := alive()) is not None and not watch._closed:
            interval, settings = watch._settings.poll_interval_s, watch._settings
            try:
                if listening is None or listening.closed:
                    listening, said = connect_admin(settings.catalog_url, settings), -1
                if said < 0:
                    version = _say(listening, watch)
                    listen(listening, MAP_CHANNEL)
                    said = version
                watch.refresh()
                if said != watch.map.version:
                    said = _say(listening, watch)
                wanted = watch._wanted
                del watch
                wait_for_notice(listening, timeout_s=interval, unless=wanted)
            except Exception as exc:  # noqa: BLE001  # whatever it was, the next round asks again; the map in memory still routes
                log.warning("the catalog could not be asked: %s", exc)
                watch = alive()
                if watch is not None:
                    wanted = watch._wanted
                    del watch
                    wanted.wait(min(interval, 1.0))
    finally:
        if listening is not None:
            listening.close()


def _say(connection: Any, watch: MapWatch) -> int:
    """Let pg_stat_activity of the catalog show which map this program has; gives its version."""
    settings, version = watch._settings, watch.map.version
    announce(connection, program_name(settings.application_name, version=version, budget=settings.connection_budget))
    return version
