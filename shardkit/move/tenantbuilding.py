"""The effects that build a tenant's own shard, and the one that takes down what is not needed any more."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from psycopg import sql

from shardkit.catalog.journal import MoveObject
from shardkit.catalog.rows import load_map
from shardkit.core import moving as m
from shardkit.core.names import APP_ROLE, OPERATOR_ROLE, curtain_name, parse_schema
from shardkit.db.shard_objects import shard_objects
from shardkit.errors import MoveError
from shardkit.move import checks, curtain, tenantchecks
from shardkit.move.building import Building, furnish
from shardkit.move.copy import copy_tables
from shardkit.move.fence import guard
from shardkit.move.share import share_of, survey
from shardkit.move.structure import AFTER_ROWS, create_schema, make
from shardkit.move.tenantwork import TenantWork

REMOVED_AT_ONCE: Final = 5_000


class TenantBuilding(Building):
    """Publication, schema, rows, indexes, curtain."""

    w: TenantWork

    def __init__(self, work: TenantWork) -> None:
        super().__init__(work)
        more: dict[type[m.Effect], Callable[[Any], Any]] = {
            m.Check: self._check, m.Publish: self._publish, m.Copy: self._copy, m.Complete: self._complete, m.Arm: self._arm,
            m.Subscribe: lambda _: None,
        }  # fmt: skip
        self.effects |= more

    def _check(self, _: m.Check) -> None:
        site = tenantchecks.site_of(self.w.source, self.w.target, self.w)
        checks.refuse(tenantchecks.survey(site, self.w, self.w.map))

    def _publish(self, _: m.Publish) -> None:
        prepare(self.w)

    def _copy(self, _: m.Copy) -> None:
        began, done, target = time.monotonic(), 0, self.w.target
        self.w.journal.register(target.name, "schema", self.w.into)
        with target.on().transaction():
            make(target.on(), [create_schema(self.w.into)])
            rights = sql.SQL("GRANT USAGE ON SCHEMA {} TO {}, {}")
            target.on().execute(rights.format(*map(sql.Identifier, (self.w.into, APP_ROLE, OPERATOR_ROLE))))
            target.on().execute(shard_objects(self.w.into_shard, self.w.into))
        make(target.on(), [part for part in self.w.structure() if part.phase != AFTER_ROWS])

        def copied(more: int) -> None:
            nonlocal done
            done += more
            self.w.ease(self.w.tell("copy", done=done))

        copy_tables(
            self.w.source, target, self.w.schema, self.w.tables(), snapshot=None, copied=copied, into=self.w.into,
            rows=lambda table: self.w.share.rows(self.w.schema, table),
        )  # fmt: skip
        self.w.facts |= {"bytes": done, "copy_s": round(time.monotonic() - began, 3)}

    def _complete(self, _: m.Complete) -> None:
        have = {(part.kind, part.name, part.ddl) for part in self.w.structure_there()}
        make(self.w.target.on(), [part for part in self.w.structure() if (part.kind, part.name, part.ddl) not in have])
        tables = self.w.tables()
        commands = [guard(self.w.into, table) for table in tables]
        if tables:
            commands.append(sql.SQL("ANALYZE {}").format(sql.SQL(", ").join(table.within(self.w.into) for table in tables)))
        for command in commands:
            self.w.target.on().execute(command)

    def _arm(self, _: m.Arm) -> None:
        arm(self.w)

    def _drop(self, found: MoveObject) -> None:
        end, options = self.w.ends[found.server], self.w.options
        match found.kind:
            case "rows":
                self._remove_rows(found)
            case "curtain":
                hidden = [o for o in self.w.journal.objects(inherited=True) if (o.kind, o.move_id) == ("rows", found.move_id)]
                if hidden:
                    raise MoveError(
                        f"the tenant's rows in {hidden[0].name} are still there, so what hides them stays: run "
                        "`shardkit moves finish` again"
                    )
                curtain.take_down(end, found.name, wait_ms=options.budget_ms, give_up_after_s=options.give_up_after_s)
            case _:
                super()._drop(found)

    def _remove_rows(self, found: MoveObject) -> None:
        """Remove the tenant's rows from a shard it has left. Where it has come back to, they are its only ones."""
        named, end = parse_schema(found.name), self.w.ends[found.server]
        if named is None or load_map(self.w.journal.connection).shard_of(self.w.tenant) == named.shard:
            return
        if not curtain.is_drawn(end, curtain_name(found.move_id)):
            raise MoveError(
                f"the tenant's rows in {found.name} are not hidden any more, so they were not removed: somebody may have "
                "written to them. Compare them with the tenant's shard, and delete them by hand"
            )
        share = share_of(end, found.name, self.w.tenant, survey(end, found.name, whole=()))
        removed = 0
        for table in share.columns:
            command = share.removal(found.name, table, at_once=REMOVED_AT_ONCE)
            more = REMOVED_AT_ONCE if command is not None else 0
            while more == REMOVED_AT_ONCE and command is not None:
                with end.on().transaction():
                    end.on().execute("SET LOCAL session_replication_role = replica")  # they move: nothing is deleted
                    more = end.on().execute(command).rowcount
                removed += more
                self.w.tell("finish", done=removed)


def prepare(work: TenantWork) -> None:
    """Make what both servers need, and the publication on the source."""
    for end in (work.source, work.target):
        for lane in (work.out, work.back):
            work.journal.register(end.name, "marks", lane)
        furnish(end)
        curtain.furnish(end)
    work.publication(work.source, work.out)


def arm(work: TenantWork) -> None:
    """Hang the curtain that will hide on the source what has gone from it; publish who writes to the target."""
    work.journal.register(work.source.name, "curtain", work.curtain)
    options = work.options
    curtain.hang(
        work.source, work.curtain, work.schema, work.share, wait_ms=options.budget_ms, give_up_after_s=options.give_up_after_s
    )
    work.publication(work.target, work.back)
