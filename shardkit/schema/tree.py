"""An Alembic tree as the fleet sees it: its one head, the steps from any version, and what is marked post-deploy."""

from __future__ import annotations

import ast
import inspect
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from alembic.config import Config
from alembic.script import Script, ScriptDirectory
from alembic.script.revision import RevisionError
from alembic.util import CommandError

from shardkit.core.fleet import Step, Version
from shardkit.errors import MigrationError, NoDowngradeError, ShardKitError, TwoHeadsError, UnknownRevisionError
from shardkit.schema.trees import tree_config

Direction = Literal["up", "down"]
DEPLOY_MARKS = ("pre", "post")


class Tree:
    """A tree in a directory, read once. Raises TwoHeadsError, or MigrationError for files Alembic cannot use."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config: Config = tree_config(directory)
        with as_ours(f"the tree {directory.name}"):
            self.script = ScriptDirectory.from_config(self.config)
            heads = self.script.get_heads()
        if len(heads) > 1:
            raise TwoHeadsError(
                f"the tree {directory.name} has {len(heads)} heads ({', '.join(sorted(heads))}); nothing was done. "
                "Merge them: alembic merge heads"
            )
        self.head: str | None = heads[0] if heads else None
        self._applied: dict[Version, frozenset[str]] = {}
        self._paths: dict[tuple[Version, str | None, Direction], tuple[Step, ...] | None] = {}

    def resolve(self, name: str) -> str | None:
        """The full id of the revision *name* (``head``, ``base``: None, an id or the beginning of one)."""
        if name in ("head", "heads"):
            return self.head
        if name == "base":
            return None
        if name.startswith(("+", "-")):
            raise UnknownRevisionError(
                f"{name!r} is relative, and shards may stand at different revisions; nothing was done. Name a revision"
            )
        try:
            found = self.script.get_revision(name)
        except (CommandError, RevisionError, KeyError):
            found = None
        if found is None:
            raise UnknownRevisionError(f"the tree {self.directory.name} has no revision {name!r}; nothing was done")
        return str(found.revision)

    def path(self, version: Version, target: str | None, direction: Direction = "up") -> tuple[Step, ...] | None:
        """The steps from *version* to *target*, none if there is nothing to do; None if the tree does not know *version*."""
        key = (version, target, direction)
        if key not in self._paths:
            self._paths[key] = self._find(*key)
        return self._paths[key]

    def _find(self, version: Version, target: str | None, direction: Direction) -> tuple[Step, ...] | None:
        try:
            known = {v for v in version if (one := self.script.get_revision(v)) is not None and one.revision == v}
        except (CommandError, RevisionError, KeyError):
            return None
        if known != set(version):
            return None
        with as_ours(f"the way from {', '.join(version) or 'base'} to {target or 'base'}"):
            if direction == "up":
                found = self.script._upgrade_revs(target, version) if target else []  # type: ignore[arg-type]  # takes a tuple too
            elif target is not None and target not in self.applied(version):
                found = []
            else:
                found = self.script._downgrade_revs(target or "base", version)  # type: ignore[arg-type]  # takes a tuple too
        steps, before = [], version
        for step in found:
            script: Script = step.revision
            parents = {str(r) for r in script._versioned_down_revisions}
            lost, gained = (parents, {script.revision}) if direction == "up" else ({script.revision}, parents)
            after = tuple(sorted((set(before) - lost) | gained))
            steps.append(Step(str(script.revision), before, after))
            before = after
        return tuple(steps)

    def applied(self, version: Version) -> frozenset[str]:
        """All revisions a shard at *version* has; none for a version the tree does not know."""
        if version not in self._applied:
            try:
                below = {str(r.revision) for r in self.script.iterate_revisions(version, "base")} if version else set()
            except (CommandError, RevisionError, KeyError):
                below = set()
            self._applied[version] = frozenset(below)
        return self._applied[version]

    def module(self, revision: str) -> Any:
        """The Python module of a revision."""
        return self.script.get_revision(revision).module

    def deploy(self, revision: str) -> str:
        """When a revision belongs: ``pre`` the new program's start (the default), or ``post``."""
        mark = str(getattr(self.module(revision), "deploy", "pre"))
        if mark not in DEPLOY_MARKS:
            raise MigrationError(f"revision {revision} says deploy = {mark!r}; it is 'pre' or 'post'. Nothing was done")
        return mark

    def post(self) -> frozenset[str]:
        """All revisions marked post-deploy."""
        return frozenset(str(r.revision) for r in self.script.walk_revisions() if self.deploy(str(r.revision)) == "post")

    def check_downgrade(self, revision: str) -> None:
        """Raise NoDowngradeError for a revision that does something and has no code to take it back."""
        module = self.module(revision)
        if _has_code(getattr(module, "upgrade", None)) and not _has_code(getattr(module, "downgrade", None)):
            raise NoDowngradeError(f"revision {revision} has no code in downgrade(): it cannot be taken back. Nothing was done")


def _has_code(function: Any) -> bool:
    if function is None:
        return False
    body = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0].body  # type: ignore[attr-defined]  # a function's
    return not all(
        isinstance(line, ast.Pass) or (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)) for line in body
    )


@contextmanager
def as_ours(what: str) -> Iterator[None]:
    """Errors of Alembic and of the tree's own code, and warnings about duplicate or missing revisions, as ours."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            yield
    except ShardKitError:
        raise
    except Exception as exc:
        said = str(exc) if isinstance(exc, CommandError | RevisionError | UserWarning) else f"{type(exc).__name__}: {exc}"
        raise MigrationError(f"{what} cannot be used: {said}; nothing was done") from exc
