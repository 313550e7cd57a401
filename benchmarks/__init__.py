"""Each module here asks one question of shardkit and answers it with ratios measured in one run.

``python -m benchmarks`` lists them. They run from a checkout and are no part of the installed package.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final, Protocol, cast

if TYPE_CHECKING:
    from benchmarks.harness import Bench

NAMES: Final = (
    "routing",
    "ids",
    "placement",
    "local",
    "cache",
    "moves",
    "migrations",
    "fanout",
    "trouble",
    "steps",
    "shards",
    "year",
    "load",
)


class Benchmark(Protocol):
    """What a module must have to be a benchmark."""

    QUESTION: str

    def run(self, bench: Bench, /) -> None: ...


def present() -> list[str]:
    """The benchmarks of this checkout, in the order of the README."""
    return [name for name in NAMES if find_spec(f"{__name__}.{name}")]


def find(name: str) -> Benchmark:
    """The benchmark called *name*, which must be one of :func:`present`."""
    if name not in present():
        raise LookupError(f"no benchmark is called {name!r}; there are: {', '.join(present())}")
    return cast("Benchmark", import_module(f"{__name__}.{name}"))
