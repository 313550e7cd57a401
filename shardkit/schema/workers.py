"""The runner's side of the worker processes: a few, made when the first online revision comes, lent to one lane each."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from shardkit.core.fleet import Step
from shardkit.db.steps import Target, Trouble
from shardkit.schema.online import settings_out
from shardkit.schema.tree import Direction
from shardkit.settings import Settings


class Workers:
    """At most *most* processes for the tree; as a context manager it ends them."""

    def __init__(self, settings: Settings, tree: Path, direction: Direction, *, most: int | None = None) -> None:
        self._hello = {
            "settings": settings_out(settings),
            "tree": str(tree.absolute()),
            "direction": direction,
            "path": sys.path,
        }
        self._free: queue.SimpleQueue[subprocess.Popen[str] | None] = queue.SimpleQueue()
        for _ in range(most or min(4, max(2, os.cpu_count() or 2))):
            self._free.put(None)
        self._all: list[subprocess.Popen[str]] = []

    def run(
        self, url: str, server: str, target: Target, step: Step, *, lock_timeout_ms: int, patience_ms: int
    ) -> Trouble | None:
        """Run *step* in *target*, waiting for a free process; None if it is done."""
        job = {
            "url": str(url),
            "server": f"server {server!r}",
            "shard": target.shard,
            "schema": target.schema,
            "revision": step.revision,
            "before": step.before,
            "after": step.after,
            "lock_timeout_ms": lock_timeout_ms,
            "patience_ms": patience_ms,
        }
        process = self._free.get()
        try:
            if process is None or process.poll() is not None:
                process = self._start()
            answer = self._ask(process, job)
        finally:
            self._free.put(process)
        return Trouble(**answer) if answer else None

    def _start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "shardkit.schema.online"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p or "." for p in sys.path)},
        )
        self._all.append(process)
        assert process.stdin is not None
        process.stdin.write(json.dumps(self._hello) + "\n")
        return process

    @staticmethod
    def _ask(process: subprocess.Popen[str], job: dict[str, Any]) -> dict[str, Any]:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            return {"text": "the worker process ended in the middle of the revision; its transaction was rolled back"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for process in self._all:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.close()
            except BrokenPipeError:
                pass
            process.wait()
            process.stdout.close()
