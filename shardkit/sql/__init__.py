"""SQL lives in files: each statement begins with ``-- name --`` and one comment line that says what it is for."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import LiteralString, cast

_HEADER = re.compile(r"^-- (\w+) --$", re.MULTILINE)


@cache
def statements(file: str) -> dict[str, LiteralString]:
    """The named statements of ``shardkit/sql/<file>.sql``.

    They are part of the program, as safe as if they were written in it; hence the cast that lets psycopg take them.
    """
    parts = _HEADER.split(files("shardkit.sql").joinpath(f"{file}.sql").read_text("utf-8"))
    return {name: cast("LiteralString", text.strip()) for name, text in zip(parts[1::2], parts[2::2], strict=True)}
