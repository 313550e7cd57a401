"""One revision, rendered once as SQL for every shard; what cannot be rendered honestly is found out and runs online.

Alembic's offline mode answers every statement with None. A revision that reads data would then do the wrong thing without
a word, so the bind it is given here notices when somebody looks at an answer.
"""

from __future__ import annotations

import inspect
import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from alembic.runtime.environment import EnvironmentContext
from sqlalchemy import text
from sqlalchemy.dialects.postgresql.base import PGCompiler
from sqlalchemy.schema import DDLElement
from sqlalchemy.sql.elements import ClauseElement

from shardkit.core.fleet import Step
from shardkit.core.sqltext import controls_transactions, outlasts_transaction, outline
from shardkit.errors import MigrationError
from shardkit.schema.tree import Direction, Tree, as_ours


@dataclass(frozen=True, slots=True)
class Segment:
    """Statements that share one transaction; ``transactional`` False: each stands alone, in no transaction."""

    statements: tuple[str, ...]
    transactional: bool = True


@dataclass(frozen=True, slots=True)
class Rendered:
    """A revision as SQL with unqualified names; or, with ``online`` saying why, one that Alembic must run."""

    revision: str
    segments: tuple[Segment, ...] = ()
    online: str = ""

    @property
    def pure(self) -> bool:
        """Whether the whole revision is SQL that fits in one transaction."""
        return not self.online and all(segment.transactional for segment in self.segments)

    @property
    def statements(self) -> tuple[str, ...]:
        """All statements in order."""
        return tuple(s for segment in self.segments for s in segment.statements)

    @property
    def lasting(self) -> bool:
        """Whether it may leave something in its session that the next shard would meet there."""
        return any(outlasts_transaction(statement) for statement in self.statements)

    @property
    def count(self) -> int:
        """How many statements they are for PostgreSQL: one text can hold several."""
        return sum(len(outline(statement)) for statement in self.statements)


class _ReadsDataError(BaseException):
    """Not an Exception, so that no ``except Exception`` of a revision hides it."""


class _Answer:
    """What an offline statement gives back: anybody who looks at it reads data."""

    def __getattribute__(self, name: str) -> NoReturn:
        raise _ReadsDataError(f"it uses the result of a statement (.{name})")

    def __iter__(self) -> Iterator[Any]:
        raise _ReadsDataError("it reads rows")

    def __bool__(self) -> bool:
        raise _ReadsDataError("it tests the result of a statement")


class _StrictCompiler(PGCompiler):
    """SQLAlchemy writes NULL for a parameter nobody gave a value, as in ``note LIKE ' :x'``; that is never what was meant."""

    def render_literal_bindparam(self, bindparam: Any, *given: Any, **options: Any) -> str:
        """A value as SQL text."""
        if bindparam.required and bindparam.value is None and bindparam.callable is None:
            raise MigrationError(
                f"its SQL has the parameter :{bindparam.key} and no value for it; nothing was done. "
                "If a colon is meant, write \\\\:"
            )
        return str(super().render_literal_bindparam(bindparam, *given, **options))  # type: ignore[no-untyped-call]  # SQLAlchemy's


class _Bind:
    """In place of Alembic's mock connection: takes statements, and tells when something else is wanted of it."""

    def __init__(self, impl: Any) -> None:
        self._impl = impl
        self.dialect = impl.dialect

    def execute(self, statement: Any, parameters: Any = None, **_options: Any) -> Any:
        if parameters or not isinstance(statement, ClauseElement):
            raise _ReadsDataError("it sends a statement with parameters of its own")
        self._impl._exec(statement)
        return _Answer()

    def in_transaction(self) -> bool:
        """Alembic itself asks, before it leaves a transaction."""
        return False

    def __getattr__(self, name: str) -> NoReturn:
        raise _ReadsDataError(f"it uses the connection itself (.{name})")


def render(tree: Tree, steps: Iterable[Step], direction: Direction = "up") -> dict[str, Rendered]:
    """Each revision of *steps* once, through the tree's own ``env.py``."""
    done: dict[str, Rendered] = {}

    def each(_version: Any, context: Any) -> list[Any]:
        environment.is_offline_mode = _refuse_question  # type: ignore[method-assign]  # meant so
        for step in steps:
            if step.revision not in done:
                done[step.revision] = _one(tree, step.revision, direction, context)
        return []

    tree.config.attributes["output"] = io.StringIO()
    environment = EnvironmentContext(tree.config, tree.script, fn=each, as_sql=True)
    with environment, as_ours(f"the tree {tree.directory.name}"):
        tree.script.run_env()
    return done


def _refuse_question() -> NoReturn:
    raise _ReadsDataError("it asks whether it runs offline")


def _one(tree: Tree, revision: str, direction: Direction, context: Any) -> Rendered:
    module = tree.module(revision)
    work = module.upgrade if direction == "up" else module.downgrade
    impl = context.impl
    collected = _Collector()
    kept = context.connection
    impl.dialect.statement_compiler = _StrictCompiler
    context.connection = impl.connection = _Bind(impl)
    impl.static_output, impl.emit_begin, impl.emit_commit = collected.take, collected.begin, collected.commit
    impl._exec = _printer(impl.dialect, collected)
    try:
        work()
    except MigrationError as exc:
        raise MigrationError(f"revision {revision} cannot be run: {exc.args[0]}") from exc
    except _ReadsDataError as exc:
        return _for_alembic(module, revision, str(exc))
    except Exception as exc:  # noqa: BLE001  offline it fails; online it may work, or will say why on the first shard
        return _for_alembic(module, revision, f"it cannot be rendered: {type(exc).__name__}: {exc}".partition("\n")[0])
    finally:
        context.connection = impl.connection = kept
        del impl.static_output, impl.emit_begin, impl.emit_commit, impl._exec
    if any(controls_transactions(statement) for segment in collected.segments() for statement in segment.statements):
        raise MigrationError(
            f"revision {revision} begins or ends transactions itself, so no run could tell how far it came; nothing was done. "
            "Use op.get_context().autocommit_block()"
        )
    return Rendered(revision, tuple(collected.segments()))


def _for_alembic(module: Any, revision: str, why: str) -> Rendered:
    if "autocommit_block" in inspect.getsource(module):
        raise MigrationError(
            f"revision {revision} cannot be rendered ({why}) and leaves its transaction: killed in the middle, nobody "
            "could say how far it came; nothing was done. Make two revisions of it"
        )
    return Rendered(revision, online=why)


def _printer(dialect: Any, collected: _Collector) -> Callable[..., None]:
    """Takes statements as Alembic does offline, but leaves tabs alone: it makes spaces of them, and they may be data."""

    def take(construct: Any, _options: Any = None, multiparams: Any = None, params: Any = ()) -> None:
        if multiparams is not None or params:
            raise TypeError("SQL parameters not allowed with as_sql")
        statement = text(construct) if isinstance(construct, str) else construct
        literal: dict[str, Any] = {} if isinstance(statement, DDLElement) else {"compile_kwargs": {"literal_binds": True}}
        collected.take(str(statement.compile(dialect=dialect, **literal)))

    return take


class _Collector:
    """Takes what Alembic would print, apart by transaction."""

    def __init__(self) -> None:
        self._parts: list[tuple[bool, list[str]]] = [(True, [])]

    def take(self, said: str) -> None:
        statement = said.strip().removesuffix(";")
        if statement:
            self._parts[-1][1].append(statement)

    def commit(self) -> None:
        self._parts.append((False, []))

    def begin(self) -> None:
        self._parts.append((True, []))

    def segments(self) -> Iterator[Segment]:
        for transactional, statements in self._parts:
            if statements:
                yield Segment(tuple(statements), transactional)
