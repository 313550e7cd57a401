"""The checker of ids: draws them as many clients at once, and counts what came twice or went back."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.sql import SQL, Identifier


@dataclass(frozen=True, slots=True)
class Draw:
    """One statement's ids, and when it was sent and answered (system-wide monotonic seconds)."""

    sent: float
    answered: float
    ids: list[int]


@dataclass(frozen=True, slots=True)
class Faults:
    """What the checker found."""

    repeated: int
    inversions: int


def check(draws: list[Draw]) -> Faults:
    """Ids that came twice, and ids not greater than one that somebody already held when they were asked for."""
    every = [key for draw in draws for key in draw.ids]
    inversions = sum(a >= b for draw in draws for a, b in itertools.pairwise(draw.ids))
    answered = sorted(draws, key=lambda draw: draw.answered)
    highest, done = 0, 0
    for draw in sorted(draws, key=lambda draw: draw.sent):
        while done < len(answered) and answered[done].answered < draw.sent:
            highest = max(highest, *answered[done].ids)
            done += 1
        inversions += sum(key <= highest for key in draw.ids)
    return Faults(repeated=len(every) - len(set(every)), inversions=inversions)


def draw(connection: psycopg.Connection[Any], count: int, *, schema: str) -> Draw:
    """*count* ids in one statement."""
    sent = time.monotonic()
    query = SQL("SELECT {}.next_id() FROM generate_series(1, %s)").format(Identifier(schema))
    rows = connection.execute(query, (count,)).fetchall()
    return Draw(sent, time.monotonic(), [key for (key,) in rows])


def draw_many(url: str, sizes: list[int], schema: str) -> list[Draw]:
    """What one client draws, statement after statement; also the body of a client process."""
    with psycopg.connect(url, autocommit=True) as connection:
        return [draw(connection, size, schema=schema) for size in sizes]
