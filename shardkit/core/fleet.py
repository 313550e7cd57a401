"""A migration of the whole fleet as values: which shard still needs which revisions, in which wave, and when to stop.

The version rows inside the shards are the truth. The ledger in the catalog only remembers what became of each attempt, so
that whoever looks knows why a shard is behind.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from shardkit.errors import SettingsError

Version = tuple[str, ...]
"""The revisions in a shard's version table, sorted: none, one, or several in a tree with branches."""

MOST_IN_ONE_TRANSACTION: Final = 16
QUICK_MS: Final = 50.0
CONNECTIONS_WHEN_QUICK: Final = 2
SHORTEST_LOCK_WAIT_MS: Final = 5
LONGEST_S: Final = 7 * 86_400  # PostgreSQL's time-outs have room for some three times as many milliseconds


class State(enum.Enum):
    """What became of one revision in one shard."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class Why(enum.Enum):
    """Why a shard is behind."""

    WAITING = "not yet run"
    STOPPED = "interrupted"
    FAILED = "failed"
    LOCKED = "locked by others for too long"
    MOVING = "being moved"
    DOWN = "server does not answer"
    MISSING = "schema is missing"
    INCOMPLETE = "lacks tables of shardkit's own"
    LOST = "version is not in the tree"
    LEFT_OUT = "left out"


@dataclass(frozen=True, slots=True)
class Step:
    """One revision, up or down: the version a shard must have before it, and has after it."""

    revision: str
    before: Version
    after: Version


@dataclass(frozen=True, slots=True)
class Found:
    """What one look at a shard said. ``version`` None: it could not be read, for the reason given."""

    shard: int
    server: str
    version: Version | None
    why: Why | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of the ledger."""

    shard: int
    revision: str
    state: State
    attempts: int = 0
    error: str = ""
    up: bool = True


@dataclass(frozen=True, slots=True)
class Behind:
    """A shard that is not where it should be, and why."""

    shard: int
    server: str
    version: Version | None
    missing: int
    why: Why
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to go over the fleet. ``wave`` and ``canary`` count shards; ``budget_ms`` is the longest a writer may wait for us."""

    canary: int = 1
    wave: int = 512
    max_failures: int = 10
    only: frozenset[int] | None = None
    exclude: frozenset[int] = frozenset()
    parallel: int = 4
    batch: int = MOST_IN_ONE_TRANSACTION
    budget_ms: int = 1000
    patience_s: float = 60.0
    moves_wait_s: float = 0.0

    def __post_init__(self) -> None:
        for name in ("patience_s", "moves_wait_s"):
            if not 0 <= (value := getattr(self, name)) <= LONGEST_S:
                raise SettingsError(f"{name} is a number of seconds from 0 to {LONGEST_S}, not {value!r}; nothing was done")
        if not 0 < self.budget_ms <= LONGEST_S * 1000:
            raise SettingsError(f"budget_ms is from 1 to {LONGEST_S * 1000}, not {self.budget_ms!r}; nothing was done")

    def takes(self, shard: int) -> bool:
        """Whether *shard* is to be worked on."""
        return (self.only is None or shard in self.only) and shard not in self.exclude


@dataclass(frozen=True, slots=True)
class Plan:
    """Work in waves of shard numbers; every shard's steps; who cannot be worked on; how many need nothing."""

    waves: tuple[tuple[int, ...], ...]
    steps: Mapping[int, tuple[Step, ...]]
    behind: tuple[Behind, ...]
    current: int

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do and nobody behind."""
        return not self.waves and not self.behind


def plan(
    found: Iterable[Found],
    path: Callable[[Version], tuple[Step, ...] | None],
    options: Options,
    ledger: Mapping[tuple[int, str], Entry] | None = None,
) -> Plan:
    """What is to be done, from what the shards say. *path* gives the steps from a version, None if it does not know it."""
    steps: dict[int, tuple[Step, ...]] = {}
    behind: list[Behind] = []
    current = 0
    for one in sorted(found, key=lambda f: f.shard):
        if one.version is None:
            if options.takes(one.shard):
                behind.append(Behind(one.shard, one.server, None, 0, one.why or Why.DOWN, one.detail))
            continue
        way = path(one.version)
        if way == ():
            current += 1
        elif not options.takes(one.shard):
            behind.append(Behind(one.shard, one.server, one.version, len(way or ()), Why.LEFT_OUT))
        elif way is None:
            detail = f"version {', '.join(one.version)} is in no revision file of the tree"
            behind.append(Behind(one.shard, one.server, one.version, 0, Why.LOST, detail))
        elif one.why is not None:
            behind.append(Behind(one.shard, one.server, one.version, len(way), one.why, one.detail))
        else:
            steps[one.shard] = way
    # A shard that failed last time goes last: it must not keep the healthy ones waiting.
    failed = {shard for (shard, _), entry in (ledger or {}).items() if entry.state is State.FAILED}
    order = sorted(steps, key=lambda shard: (shard in failed, shard))
    return Plan(tuple(waves(order, canary=options.canary, wave=options.wave)), steps, tuple(behind), current)


def waves(shards: Sequence[int], *, canary: int, wave: int) -> Iterator[tuple[int, ...]]:
    """The canaries, then waves of at most *wave* shards."""
    if canary and shards:
        yield tuple(shards[:canary])
    for start in range(canary, len(shards), wave):
        yield tuple(shards[start : start + wave])


def why_behind(one: Found, way: Sequence[Step], ledger: Mapping[tuple[int, str], Entry]) -> Behind:
    """A shard that needs *way*, with the reason the ledger knows."""
    entry = ledger.get((one.shard, way[0].revision)) if way else None
    why, detail = one.why or Why.WAITING, one.detail
    if one.why is None and entry is not None:
        if entry.state is State.FAILED:
            why, detail = Why.FAILED, f"revision {entry.revision}, attempt {entry.attempts}: {entry.error}"
        elif entry.state is State.RUNNING:
            why, detail = Why.STOPPED, f"revision {entry.revision} was being run, or its runner was killed"
    return Behind(one.shard, one.server, one.version, len(way), why, detail)


def settled(
    found: Iterable[Found], ledger: Mapping[tuple[int, str], Entry], applied: Callable[[Version], Collection[str]]
) -> list[Entry]:
    """Entries that say "not done" of work that is: their runner was killed before it could write it down."""
    versions = {one.shard: one.version for one in found if one.version is not None}
    return [
        entry
        for entry in ledger.values()
        if entry.state is not State.DONE
        and entry.shard in versions
        and (entry.revision in applied(versions[entry.shard])) == entry.up
    ]


def must_stop(*, failures: int, canary: bool, max_failures: int) -> bool:
    """Whether no further shard may be begun: a canary failed, or more shards than allowed."""
    return failures > (0 if canary else max_failures)


def in_phase(steps: Sequence[Step], post: Collection[str], phase: str | None) -> tuple[Step, ...]:
    """The *steps* a phase may take: ``pre`` goes up to the first revision marked post-deploy, any other phase all the way."""
    if phase != "pre":
        return tuple(steps)
    end = next((n for n, step in enumerate(steps) if step.revision in post), len(steps))
    return tuple(steps[:end])


def batch_size(*, slowest_ms: float | None, options: Options) -> int:
    """Shards in one transaction: as many as hold their locks for less than the budget. What nobody has timed goes alone."""
    if slowest_ms is None:
        return 1
    fits = int(options.budget_ms / 4 / max(slowest_ms, 0.01))
    return max(1, min(options.batch, MOST_IN_ONE_TRANSACTION, fits))


def connections(*, slowest_ms: float | None, options: Options) -> int:
    """How many connections to a server pay, for revisions of which the slowest took *slowest_ms* in a shard.

    What is over in a moment keeps a server busy through two: each more costs its start, and every other hears of each change.
    """
    quick = slowest_ms is not None and slowest_ms < QUICK_MS
    return min(options.parallel, CONNECTIONS_WHEN_QUICK) if quick else options.parallel


def lock_timeout_ms(*, statements: int, options: Options) -> int:
    """Longest wait for one lock, so that all waits of a transaction with *statements* stay within the budget.

    Whoever queues behind our request waits as long as we do, hence the sum counts and not each wait.
    """
    return max(SHORTEST_LOCK_WAIT_MS, options.budget_ms // max(1, statements))


def pause_s(attempt: int, *, chance: float) -> float:
    """Back-off before the next try for a lock, after *attempt* (1 is the first); *chance* is a random number from 0 to 1."""
    return float(min(5.0, 0.05 * 2**attempt) * (0.5 + chance / 2))
