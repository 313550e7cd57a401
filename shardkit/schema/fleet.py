"""Takes every shard to a revision and says who is not there: one runner, canaries first, waves after, killed and run again."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from shardkit.catalog.ledger import Ledger, begin, hold_shards, last_runs, moving_shards, read_ledger
from shardkit.catalog.rows import load_map, newest_map
from shardkit.core.fleet import Behind, Options, Step, Version, Why, in_phase, plan, why_behind
from shardkit.db.connect import at, connect_admin, said, server_url
from shardkit.db.steps import Target, stamp
from shardkit.errors import MigrationError, ServerError, SettingsError, UnknownShardError
from shardkit.schema.lanes import Shared
from shardkit.schema.run import FinishSoak, Progress, Report, Run, schema_of
from shardkit.schema.tree import Direction, Tree
from shardkit.schema.trees import upgrade_catalog
from shardkit.schema.workers import Workers
from shardkit.settings import Settings


class Fleet:
    """All shards of a cluster, through an Alembic tree."""

    def __init__(self, settings: Settings, tree: Path) -> None:
        self.settings = settings
        self._directory = tree

    @cached_property
    def tree(self) -> Tree:
        """The tree, read when it is first asked for."""
        return Tree(self._directory)

    def migrate(
        self,
        target: str = "head",
        *,
        direction: Direction = "up",
        options: Options | None = None,
        phase: str | None = None,
        dry_run: bool = False,
        finish_soak: FinishSoak | None = None,
        progress: Progress = lambda _done, _total, _failed: None,
    ) -> Report:
        """Take every shard to *target*. Raises FleetBusyError, UnknownRevisionError, NoDowngradeError before anything is done.

        Shards that are being moved are waited for, up to ``options.moves_wait_s``, and migrated when the move is over. A
        soak is not waited for: with *finish_soak* it is ended (there is no going back without a copy then).
        *phase* ``pre`` stops before the first revision marked ``deploy = "post"``. A dry run looks, and changes nothing.
        """
        began = time.monotonic()
        options = options or Options()
        with ExitStack() as stack:
            run = stack.enter_context(self._run(options, direction, progress))
            check_chosen(run.shards, only=options.only, exclude=options.exclude)
            wanted = self.tree.resolve(target)
            run.ways = self._ways(wanted, direction, phase)
            run.ledger = ledger = None if dry_run else self._begin(run.catalog, direction, target if wanted is None else wanted)
            if ledger is not None:
                stack.enter_context(ledger.lease())
            first = run.look()
            if dry_run:
                lacking = (lacks(shard, run, ", ".join(tables)) for shard, tables in run.lacking().items())
                behind = (*first.behind, *lacking)
                return Report(wanted, direction, first.current, behind=behind, online=run.online(), planned=first)
            assert ledger is not None
            mended = run.mend()
            report = run.all(first, finish_soak=finish_soak)
            named = {one.shard for one in report.behind}
            left = [lacks(shard, run, why) for shard, why in mended.items() if why and shard not in named]
            report = replace(report, behind=(*report.behind, *left), mended=tuple(s for s, why in mended.items() if not why))
            ledger.end(done=len(report.done), behind=sum(one.why is not Why.LEFT_OUT for one in report.behind))
            return replace(
                report, target=wanted, run=ledger.run, seconds=time.monotonic() - began, online=run.online(), planned=first
            )

    def status(self, target: str = "head", *, phase: str | None = None) -> Report:
        """Who is behind, and why, by what the shards say now; the reasons come from the ledger."""
        with self._run(Options(), "up", lambda *_: None) as run:
            wanted = self.tree.resolve(target)
            ways = self._ways(wanted, "up", phase)
            found, known = run.find(), read_ledger(run.catalog)
            lacking = [lacks(shard, run, ", ".join(tables)) for shard, tables in run.lacking().items()]
        seen = plan(found, ways, Options())
        behind = [*seen.behind, *(why_behind(one, seen.steps[one.shard], known) for one in found if one.shard in seen.steps)]
        named = {one.shard for one in behind}
        behind += [one for one in lacking if one.shard not in named]
        return Report(wanted, "up", seen.current, behind=tuple(sorted(behind, key=lambda one: one.shard)))

    def runs(self) -> list[dict[str, Any]]:
        """The newest runs, newest first."""
        with at(self.settings.catalog_url, self.settings, name="the catalog") as catalog:
            return last_runs(catalog)

    def stamp(self, revision: str, *, only: frozenset[int] | None = None) -> int:
        """Say that shards (all, or *only* these) are at *revision*, and run nothing; gives how many.

        Raises MigrationError where a server did not take it; those of other servers are stamped then.
        """
        wanted = self.tree.resolve(revision)
        stamped, refused = 0, list[str]()
        with at(self.settings.catalog_url, self.settings, name="the catalog", then="run the same again") as catalog:
            ledger = self._begin(catalog, "up", wanted or "base")
            with ledger.lease():
                shard_map = load_map(catalog)
                check_chosen(shard_map.placements, only=only)
                shards = sorted(shard for shard in shard_map.placements if only is None or shard in only)
                held = hold_shards(catalog, shards) - moving_shards(catalog, shards).keys()
                shard_map = newest_map(catalog, shard_map)  # a move may have ended in between
                for name in sorted({shard_map.placement(shard).server for shard in held}):
                    mine = [Target(s, schema_of(shard_map, s)) for s in sorted(held) if shard_map.placement(s).server == name]
                    try:
                        url = server_url(shard_map.server(name), self.settings)
                        with at(url, self.settings, name=f"server {name!r}") as connection:
                            stamp(connection, mine, (wanted,) if wanted else ())
                        stamped += len(mine)
                    except ServerError as exc:
                        refused.append(str(exc.args[0]))
                ledger.end(done=stamped, behind=len(shards) - stamped)
        if refused:
            raise MigrationError(f"{stamped} shards were stamped, {len(shards) - stamped} were not: {'; '.join(refused)}")
        return stamped

    @contextmanager
    def _run(self, options: Options, direction: Direction, progress: Progress) -> Iterator[Run]:
        """A run whose lanes have begun to read. The tree is read meanwhile, in this thread: Alembic stands only one."""
        lost = said("the catalog", then="what was done in shards stays, and is seen there: run the same again")
        with lost, Workers(self.settings, self._directory, direction) as workers, ExitStack() as opened:

            def begun() -> Run:
                catalog = opened.enter_context(connect_admin(self.settings.catalog_url, self.settings))
                run = Run(catalog, Shared(self.settings, options, workers), direction, progress)
                opened.callback(run.close)
                return run

            with ThreadPoolExecutor(1) as beside:
                beginning = beside.submit(begun)
                tree = self.tree
            run = beginning.result()
            run.tree = tree
            yield run

    def _ways(
        self, wanted: str | None, direction: Direction, phase: str | None
    ) -> Callable[[Version], tuple[Step, ...] | None]:
        post = self.tree.post()

        def way(version: Version) -> tuple[Step, ...] | None:
            steps = self.tree.path(version, wanted, direction)
            return steps if steps is None or direction == "down" else in_phase(steps, post, phase)

        return way

    def _begin(self, catalog: Any, direction: Direction, target: str) -> Ledger:
        runner = f"{platform.node()}, process {os.getpid()}"
        if not catalog.execute("SELECT to_regclass('shardkit_catalog.fleet_ledger') IS NOT NULL").fetchone()[0]:
            upgrade_catalog(self.settings)
        return begin(catalog, direction=direction, target=target, runner=runner)


def check_chosen(shards: Collection[int], *, only: frozenset[int] | None = None, exclude: frozenset[int] = frozenset()) -> None:
    """Refuse numbers that are no shard's, and a choice of none: success would be said of what was never touched."""
    if strangers := sorted(((only or frozenset()) | exclude).difference(shards)):
        more = f" and {len(strangers) - 1} more" if strangers[1:] else ""
        raise UnknownShardError(f"shard {strangers[0]}{more} is not in the map ({len(shards)} shards); nothing was done")
    if not (frozenset(shards) if only is None else only) - exclude:
        raise SettingsError("no shard is left of those that were chosen; nothing was done")


def lacks(shard: int, run: Run, detail: str) -> Behind:
    """A shard without some tables of ours."""
    return Behind(shard, run.server_of(shard), None, 0, Why.INCOMPLETE, detail)
