"""Writes every shard's answer to one query into a file; a run that was stopped goes on with the shard it was at.

What is done is noted beside the file: the shards, and the length of the file after the last of them. A shard that was being
written when the program was stopped is cut off and written again.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import date, datetime
from decimal import Decimal
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args
from uuid import UUID

from shardkit.catalog.router import Router
from shardkit.core.outcome import FENCE
from shardkit.core.shardmap import ShardMap
from shardkit.db.reading import Row, reading
from shardkit.db.scatter import DriverError, ScatterConnection, connect_scatter
from shardkit.errors import FanOutError, SettingsError, ShardKitError, ShardMovedError
from shardkit.settings import Settings

Format = Literal["csv", "jsonl", "parquet"]
BATCH = 5000
_QUOTED = re.compile(r'[",\r\n]|^(?:\\\.)?\Z')
Progress = Callable[[int, int], None]


def export(
    settings: Settings,
    query: str,
    target: Path,
    *,
    format: Format,  # noqa: A002  click gives its option's name
    progress: Progress = lambda _shards, _rows: None,
) -> int:
    """Write the rows of *query* from every shard to *target*, one shard after the other; gives how many rows there are.

    csv and jsonl make one file; parquet makes a directory with one file for each shard, and needs pyarrow. *progress* hears how
    many shards and rows are done. Raises FanOutError with what the shard said; what was written stays, for the next run.
    """
    if format not in get_args(Format):
        raise SettingsError(f"format is one of {', '.join(get_args(Format))}, not {format!r}")
    router = Router(settings, follow=False)
    try:
        with ExitStack() as stack:
            writer: _Lines | _Parts = (_Parts if format == "parquet" else _Lines)(target, query, format)
            stack.callback(writer.close)
            connections: dict[str, ScatterConnection] = {}
            stack.callback(_close_all, connections)
            wanted = sorted(router.map.placements)
            for shard in wanted:
                if shard not in writer.done:
                    _one(router, settings, connections, shard, query, writer)
                progress(len(writer.done), writer.rows)
            writer.finish()
            return writer.rows
    finally:
        router.close()


def _close_all(connections: dict[str, ScatterConnection]) -> None:
    for connection in connections.values():
        connection.close()


def _one(
    router: Router, settings: Settings, connections: dict[str, ScatterConnection], shard: int, query: str, writer: Any
) -> None:
    """Write one shard; where it has just moved, from where it went."""
    for attempt in (1, 2):
        route = router.map.route(shard)
        try:
            connection = connections.get(route.server)
            if connection is None or connection.closed:
                server = router.map.server(route.server)
                connection = connections[route.server] = connect_scatter(server, settings, cluster_id=router.cluster_id)
            with reading(connection, route.schema, query, batch=BATCH) as (columns, batches):
                writer.begin(shard, columns)
                for rows in batches:
                    writer.write(rows)
            writer.end(shard)
            return
        except DriverError as exc:
            if attempt == 1 and exc.sqlstate in FENCE and _moved(router, shard, route.epoch):
                continue
            raise _failed(shard, exc, str(exc).strip()) from exc
        except ShardKitError as exc:
            raise _failed(shard, exc, exc.args[0]) from exc
    raise _failed(shard, ShardMovedError(), "it moved again and again")


def _failed(shard: int, error: Exception, why: str) -> FanOutError:
    what = f"shard {shard} was not exported; what was written of others stays, and the same export goes on from there"
    return FanOutError(f"{what}: {why}", failures={shard: error})


def _moved(router: Router, shard: int, epoch: int) -> bool:
    def newer(found: ShardMap) -> bool:
        return found.placement(shard).epoch != epoch

    return router.watch.wait_for(newer, timeout_s=1.0) is not None


class _Notes:
    """Which shards are done, beside the file, replaced as a whole after each shard."""

    def __init__(self, target: Path, query: str, kind: str) -> None:
        self.path = target.with_name(target.name + ".progress")
        self._same = hashlib.sha256(f"{kind}\0{query}".encode()).hexdigest()
        self.done: dict[int, int] = {}
        self.rows = 0
        self.columns: list[str] = []
        if self.path.exists():
            known = json.loads(self.path.read_text("utf-8"))
            if known["query"] != self._same:
                raise SettingsError(
                    f"{target} was begun with another query or format; nothing was changed. Finish that, or remove {self.path}"
                )
            self.done = {int(shard): size for shard, size in known["done"].items()}
            self.rows, self.columns = known["rows"], known["columns"]
        elif target.exists():
            raise SettingsError(f"{target} exists already; nothing was changed. Name another file, or remove it")

    def keep(self) -> None:
        new = self.path.with_name(self.path.name + ".new")
        with new.open("w", encoding="utf-8") as file:
            json.dump({"query": self._same, "done": self.done, "rows": self.rows, "columns": self.columns}, file)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.path)

    def forget(self) -> None:
        self.path.unlink(missing_ok=True)

    def check(self, shard: int, columns: list[str]) -> None:
        if self.columns and columns != self.columns:
            raise FanOutError(
                f"shard {shard} has the columns {', '.join(columns)}, others have {', '.join(self.columns)}: name the columns "
                "in the query, or migrate the shard"
            )
        self.columns = columns


class _Writer:
    """Where rows go, and the notes beside it."""

    def __init__(self, target: Path, query: str, kind: str) -> None:
        self._notes = _Notes(target, query, kind)
        self._notes.keep()

    @property
    def done(self) -> dict[int, int]:
        """Shards that are written, with what the kind of writer notes of each."""
        return self._notes.done

    @property
    def rows(self) -> int:
        return self._notes.rows

    def _ended(self, shard: int, size: int, *, rows: int) -> None:
        self._notes.done[shard] = size
        self._notes.rows += rows
        self._notes.keep()

    def finish(self) -> None:
        self._notes.forget()


class _Lines(_Writer):
    """One file of lines; of each shard is noted where it ends."""

    def __init__(self, target: Path, query: str, kind: str) -> None:
        super().__init__(target, query, kind)
        noted = max(self.done.values(), default=0)
        if noted > (target.stat().st_size if target.exists() else 0):
            raise SettingsError(
                f"{target} is shorter than what was written to it, so the export cannot go on; nothing was changed. Remove "
                f"it and {self._notes.path}, and begin again"
            )
        self._csv = kind == "csv"
        self._file = target.open("r+b" if target.exists() else "w+b")
        self._file.truncate(max(self._notes.done.values(), default=0))
        self._file.seek(0, io.SEEK_END)
        self._fresh = 0

    def begin(self, shard: int, columns: list[str]) -> None:
        first = not self._notes.columns
        self._notes.check(shard, columns)
        self._file.seek(max(self.done.values(), default=0))
        self._file.truncate()
        self._fresh = 0
        if self._csv and (first or self._file.tell() == 0):
            self._write_csv([columns])

    def write(self, rows: Sequence[Row]) -> None:
        self._fresh += len(rows)
        if self._csv:
            self._write_csv(rows)
        else:
            named = (dict(zip(self._notes.columns, map(_json, row), strict=True)) for row in rows)
            lines = (json.dumps(row, default=_plain, allow_nan=False) for row in named)
            self._file.write("".join(f"{line}\n" for line in lines).encode())

    def end(self, shard: int) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._ended(shard, self._file.tell(), rows=self._fresh)

    def close(self) -> None:
        self._file.close()

    def _write_csv(self, rows: Sequence[Sequence[Any]]) -> None:
        self._file.write("".join(f"{','.join(map(_field, row))}\r\n" for row in rows).encode())


class _Parts(_Writer):
    """A directory with one Parquet file for each shard, of which is noted how many rows it has."""

    def __init__(self, target: Path, query: str, kind: str) -> None:
        try:
            pa = import_module("pyarrow")
            parquet = import_module("pyarrow.parquet")
        except ImportError as exc:
            raise SettingsError('Parquet files need pyarrow: pip install "shardkit[parquet]"; nothing was written') from exc
        self._pa: Any = pa
        self._parquet: Any = parquet
        super().__init__(target, query, kind)
        self._target = target
        target.mkdir(exist_ok=True)
        self._batches: list[Any] = []

    def begin(self, shard: int, columns: list[str]) -> None:
        self._notes.check(shard, columns)
        self._batches = []

    def write(self, rows: Sequence[Row]) -> None:
        named = [dict(zip(self._notes.columns, map(_arrow, row), strict=True)) for row in rows]
        self._batches.append(self._pa.Table.from_pylist(named))

    def end(self, shard: int) -> None:
        rows = sum(batch.num_rows for batch in self._batches)
        if rows:
            table = self._pa.concat_tables(self._batches, promote_options="permissive")
            part = self._target / f"shard-{shard:04d}.parquet"
            self._parquet.write_table(table, part.with_suffix(".new"))
            part.with_suffix(".new").replace(part)
        self._ended(shard, rows, rows=rows)

    def close(self) -> None:
        self._batches = []


def _field(value: Any) -> str:
    """As PostgreSQL's COPY writes it: nothing for NULL, and quotes where there is an empty text."""
    if value is None:
        return ""
    text = ("true" if value else "false") if isinstance(value, bool) else _text(value)
    return '"{}"'.format(text.replace('"', '""')) if _QUOTED.search(text) else text


def _text(value: Any) -> str:
    return json.dumps(_json(value), default=_plain) if isinstance(value, dict | list) else str(_plain(value))


def _json(value: Any) -> Any:
    """*value* without floats that JSON has no number for: their names, as PostgreSQL's to_json gives."""
    if isinstance(value, list):
        return [_json(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _arrow(value: Any) -> Any:
    return _text(value) if isinstance(value, dict | list | UUID) else value


def _plain(value: Any) -> Any:
    match value:
        case datetime() | date():
            return value.isoformat()
        case Decimal() | UUID():
            return str(value)
        case bytes() | memoryview():
            return f"\\x{bytes(value).hex()}"
        case None | int() | float() | str():
            return value
    return str(value)
