"""A worker process for revisions that need Alembic on a live connection: one shard at a time, asked and answered in JSON lines.

Processes, never threads: Alembic keeps its context in module globals, and in threads it stamps shards it never touched.
Run as ``python -m shardkit.schema.online``; it ends when its standard input does.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import IO, Any

from alembic.runtime.environment import EnvironmentContext
from sqlalchemy import exc as sa_exc

from shardkit.core.fleet import Step
from shardkit.db.alone import step_lock
from shardkit.db.connect import connect_admin
from shardkit.db.steps import DriverError, Target, private, trouble
from shardkit.errors import ServerDownError, ShardKitError
from shardkit.schema.one import schema_engine
from shardkit.schema.tree import Tree
from shardkit.settings import Settings


def settings_out(settings: Settings) -> dict[str, Any]:
    """*settings* as JSON can carry them, for a pipe between two processes and nothing else."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(settings).items()}


def settings_in(data: dict[str, Any]) -> Settings:
    """The way back."""
    return Settings(**{f.name: data[f.name] for f in fields(Settings)})


class Online:
    """Runs single revisions; keeps the tree loaded between shards."""

    def __init__(self, hello: dict[str, Any]) -> None:
        sys.path[:] = hello["path"]
        self.settings = settings_in(hello["settings"])
        self.tree = Tree(Path(hello["tree"]))
        self.up = hello["direction"] == "up"

    def run(self, job: dict[str, Any]) -> dict[str, Any]:
        """One revision in one shard; the answer is empty, or says what went wrong."""
        target = Target(job["shard"], job["schema"])
        step = Step(job["revision"], tuple(job["before"]), tuple(job["after"]))
        try:
            with connect_admin(job["url"], self.settings, name=job["server"], watched=True) as guard:
                with step_lock(private(guard), target, step, patience_ms=job["patience_ms"]) as there:
                    if not there:
                        self._migrate(job, step)
        except ServerDownError as exc:
            return {"text": str(exc), "down": True}
        except (DriverError, ShardKitError, sa_exc.SQLAlchemyError) as exc:
            return asdict(trouble(getattr(exc, "orig", None) or exc))
        except Exception as exc:  # noqa: BLE001  a revision is the program's code: whatever it raises is that shard's error
            return {"text": f"{type(exc).__name__}: {exc}"}
        return {}

    def _migrate(self, job: dict[str, Any], step: Step) -> None:
        script = self.tree.script
        revision = script.get_revision(step.revision)

        def steps(version: Any, _context: Any) -> list[Any]:
            if self.up:
                return list(script._upgrade_revs(step.revision, version))
            below = revision._versioned_down_revisions
            return list(script._downgrade_revs(below[0] if below else "base", version))

        engine = schema_engine(
            job["url"], job["schema"], self.settings, name=job["server"], lock_timeout_ms=job["lock_timeout_ms"]
        )
        with engine as found, found.connect() as connection:
            self.tree.config.attributes["connection"] = connection
            with EnvironmentContext(self.tree.config, script, fn=steps):
                script.run_env()
            connection.commit()


def main() -> None:
    """Read jobs, write answers. Whatever a revision prints goes to standard error: standard output is the answers' alone."""
    answers: IO[str] = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    worker: Online | None = None
    for line in sys.stdin:
        asked = json.loads(line)
        if worker is None:
            worker = Online(asked)
            continue
        answers.write(json.dumps(worker.run(asked)) + "\n")


if __name__ == "__main__":
    main()
