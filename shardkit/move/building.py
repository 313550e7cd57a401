"""The effects that build the copy, up to the stream that keeps it fresh; and the one that takes everything down."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from psycopg import errors, sql

from shardkit.catalog.journal import MoveObject
from shardkit.core import moving as m
from shardkit.core.names import parse_schema
from shardkit.errors import MoveError, MoveInterruptedError, MoveRefusedError, ShardKitError
from shardkit.move import checks, objects
from shardkit.move.copy import copy_tables, slot_with_snapshot
from shardkit.move.ends import SQL, End, contact
from shardkit.move.fence import guard
from shardkit.move.statistics import carry_statistics
from shardkit.move.structure import AFTER_ROWS, Part, create_schema, make, make_indexes, tables_of
from shardkit.move.work import Work

BUILDERS: Final = 2


class Building:
    """Publication, slot, copy, indexes, subscription."""

    def __init__(self, work: Work) -> None:
        self.w = work
        self._site: checks.Site | None = None
        self._copied = False
        self.effects: dict[type[m.Effect], Callable[[Any], Any]] = {
            m.Check: self._check, m.Clean: self._clean, m.Publish: self._publish, m.Copy: self._copy,
            m.Complete: self._complete, m.Arm: self._arm, m.Subscribe: self._subscribe,
        }  # fmt: skip

    def _check(self, _: m.Check) -> None:
        self._site = self.w.site()
        checks.refuse(checks.survey(self._site, self.w.map))

    def _clean(self, _: m.Clean) -> None:
        left: list[str] = []
        for found in self.w.journal.objects(inherited=self.w.journal.move.step is m.Step.FINISH):
            if found.kind == "schema" and self._is_live(found.server, found.name):
                raise MoveError(f"schema {found.name} on server {found.server!r} is the live shard: it was not dropped")
            try:
                with contact():
                    self._drop(found)
            except (ShardKitError, m.LostContact) as exc:
                left.append(f"{found.kind} {found.name} on {found.server}: {exc}")
            else:
                self.w.journal.gone(found)
        if left:
            raise MoveInterruptedError("not everything could be dropped; run it again:\n  - " + "\n  - ".join(left))

    def _drop(self, found: MoveObject) -> None:
        objects.drop(self.w.ends[found.server], found.kind, found.name)

    def _is_live(self, server: str, schema: str) -> bool:
        found = parse_schema(schema)
        place = self.w.journal.placement(found.shard) if found is not None else None
        return found is not None and place == (server, found.epoch)

    def _publish(self, _: m.Publish) -> None:
        for end in self.w.ends.values():
            for lane in (self.w.out, self.w.back):
                self.w.journal.register(end.name, "marks", lane)
            furnish(end)
        self.w.publication(self.w.source, self.w.out)

    def _copy(self, _: m.Copy) -> None:
        began, done = time.monotonic(), 0
        self.w.journal.register(self.w.source.name, "slot", self.w.out)
        self.w.journal.register(self.w.target.name, "schema", self.w.schema)
        with slot_with_snapshot(self.w.source, self.w.out, timeout_s=self.w.options.slot_timeout_s) as snapshot:
            site = self._site or self.w.site()  # should it have changed since the check, the comparison will say so
            make(
                self.w.target.on(),
                [create_schema(self.w.schema), *(part for part in site.structure if part.phase != AFTER_ROWS)],
            )

            def copied(more: int) -> None:
                nonlocal done
                done += more
                self.w.ease(self.w.tell("copy", done=done, total=site.size))

            copy_tables(self.w.source, self.w.target, self.w.schema, site.tables, snapshot=snapshot, copied=copied)
        self._site, self._copied = site, True
        self.w.facts |= {"bytes": done, "copy_s": round(time.monotonic() - began, 3)}
        self.w.watch_wal()

    def _complete(self, _: m.Complete) -> None:
        builders = [self.w.target.on(f"build {number}") for number in range(BUILDERS)]
        make(self.w.target.on(), make_indexes(builders, self._missing()))
        carry_statistics(self.w.source, self.w.target, self.w.schema)
        tables = tables_of(self.w.target.on(), self.w.schema)
        if tables:
            self.w.target.on().execute(sql.SQL("; ").join(guard(self.w.schema, table) for table in tables))
        self.w.watch_wal()

    def _missing(self) -> list[Part]:
        """What has to be made yet, now that the rows are there."""
        if self._copied and self._site is not None:
            return [part for part in self._site.structure if part.phase == AFTER_ROWS]
        have = set(self.w.structure_there())
        return [part for part in self.w.structure() if part not in have]

    def _arm(self, _: m.Arm) -> None:
        self.w.publication(self.w.target, self.w.back)
        self.w.journal.register(self.w.target.name, "slot", self.w.back)
        if self.w.target.on().execute(SQL["slot"], {"name": self.w.back}).fetchone() is None:
            with self.w.target.on().transaction():
                self.w.target.on().execute(
                    sql.SQL("SET LOCAL statement_timeout = {}").format(round(self.w.options.slot_timeout_s * 1000))
                )
                try:
                    self.w.target.one("create_slot", name=self.w.back)
                except errors.QueryCanceled as exc:
                    raise MoveRefusedError(
                        f"server {self.w.target.name!r} has write transactions that stay open, and a replication slot "
                        "has to wait for them: "
                        "end them, then resume"
                    ) from exc

    def _subscribe(self, _: m.Subscribe) -> None:
        self.w.subscription(self.w.target, self.w.out, publisher=self.w.source)


def furnish(end: End) -> None:
    """Make what moves need on a server."""
    with end.on().transaction():
        end.on().execute("SELECT pg_advisory_xact_lock(7105, 2)")
        end.on().execute("SET LOCAL client_min_messages = warning")
        end.on().execute(SQL["furniture"])
