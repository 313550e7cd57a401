"""Two structures compared: what one has that the other has not, as the SQL that would make them alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

Key = tuple[int, str, str]
"""Step (what must be there before comes first), kind and name."""


class Item(NamedTuple):
    """One part of a shard: its definition, the SQL that makes it, the SQL that takes it away, and the table it is part of."""

    definition: str
    make: str
    unmake: str
    parent: str


Structure = Mapping[Key, Item]


def differences(actual: Structure, reference: Structure) -> tuple[str, ...]:
    """SQL that would turn *actual* into *reference*; nothing where they are alike."""
    return (*_surplus(actual, reference), *_lacking(actual, reference))


def _surplus(actual: Structure, reference: Structure) -> Iterator[str]:
    extra = actual.keys() - reference.keys()
    tables, columns = {name for _, kind, name in extra if kind == "table"}, {n for _, kind, n in extra if kind == "column"}
    for key in sorted(extra, reverse=True):  # what depends on something goes before it
        _, kind, name = key
        if (kind != "table" and actual[key].parent in tables) or (kind in ("default", "not null") and name in columns):
            continue  # goes with its table or column
        yield f"{actual[key].unmake};"


def _lacking(actual: Structure, reference: Structure) -> Iterator[str]:
    for key in sorted(reference):
        _, kind, _ = key
        wanted, found = reference[key], actual.get(key)
        if found is None:
            yield f"{wanted.make}{wanted.definition if kind == 'column' else ''};"
        elif found.definition != wanted.definition:
            yield from _changed(kind, found, wanted)


def _changed(kind: str, found: Item, wanted: Item) -> Iterator[str]:
    if kind == "column":
        column = wanted.make.removeprefix(f"ALTER TABLE {wanted.parent} ADD COLUMN ").strip()
        yield f"ALTER TABLE {wanted.parent} ALTER COLUMN {column} TYPE {wanted.definition};  -- is {_one_line(found)}"
    elif kind == "table" and found.definition[:-1] == wanted.definition[:-1]:  # its rows are not the price of that
        logged = "UNLOGGED" if wanted.definition.endswith("u") else "LOGGED"
        yield f"ALTER TABLE {wanted.parent} SET {logged};"
    elif kind == "sequence":  # a new one would give its numbers a second time
        yield f"{wanted.make.replace('CREATE', 'ALTER', 1)};  -- is {_one_line(found)}"
    elif kind in ("default", "row security"):
        yield f"{wanted.make};  -- is {_one_line(found)}"
    else:
        yield f"{found.unmake};  -- is {_one_line(found)}"
        yield f"{wanted.make};"


def _one_line(item: Item) -> str:
    return " ".join(item.definition.split())


def structures(rows: Iterable[tuple[str, int, str, str, str, str, str, str]]) -> dict[str, dict[Key, Item]]:
    """Structures by schema, from the rows of the query ``structure``."""
    found: dict[str, dict[Key, Item]] = {}
    for schema, step, kind, name, parent, definition, make, unmake in rows:
        found.setdefault(schema, {})[step, kind, name] = Item(definition, make, unmake, parent)
    return found
