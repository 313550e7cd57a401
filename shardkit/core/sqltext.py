"""What a text of SQL does to its transaction and its session, by its first words; what is quoted or a comment says nothing."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

BETWEEN: Final = "\n;\n"
"""Between statements: a comment at the end of one ends with its line, and swallows nothing."""

_SILENT: Final = re.compile(
    r"""(?<!\w)[eE]'(?:[^'\\]|\\.|'')*(?:'|\Z) | '(?:[^']|'')*(?:'|\Z) | "(?:[^"]|"")*(?:"|\Z)
    | (?<![\w$])\$((?:[^\W\d]\w*)?)\$.*?(?:\$\1\$|\Z) | --[^\n]* | /\*""",
    re.VERBOSE | re.DOTALL,
)
_COMMENT_EDGE: Final = re.compile(r"/\*|\*/")
_CONTROL: Final = re.compile(r"(?:BEGIN|START\s+TRANSACTION|COMMIT|END|ROLLBACK|ABORT|PREPARE\s+TRANSACTION)\b", re.IGNORECASE)
_ATOMIC: Final = re.compile(r"\bBEGIN\s+ATOMIC\b", re.IGNORECASE)
_END: Final = re.compile(r"END\b", re.IGNORECASE)
_LASTING: Final = re.compile(
    r"(?:SET\s+(?!LOCAL\b|CONSTRAINTS\b|TRANSACTION\b)|(?:RESET|DISCARD|PREPARE|DECLARE|LISTEN|LOAD)\b)"
    r"|.*\b(?:TEMP|TEMPORARY|pg_temp)\b|.*\b(?:set_config|pg_advisory_lock(?:_shared)?)\s*\(",
    re.IGNORECASE | re.DOTALL,
)


@lru_cache(1024)
def outline(sql: str) -> tuple[str, ...]:
    """The statements in *sql* without their comments, and with nothing in place of what is quoted."""
    shown, at = "", 0
    while found := _SILENT.search(sql, at):
        shown += sql[at : found.start()] + " "
        at = _after_comment(sql, found.end()) if found[0] == "/*" else found.end()
    return tuple(one for part in (shown + sql[at:]).split(";") if (one := part.strip()))


def _after_comment(sql: str, at: int) -> int:
    """Where the comment ends whose beginning ends at *at*; comments can hold comments."""
    depth = 1
    while depth and (edge := _COMMENT_EDGE.search(sql, at)):
        depth += 1 if edge[0] == "/*" else -1
        at = edge.end()
    return len(sql) if depth else at


def controls_transactions(sql: str) -> bool:
    """Whether a statement of *sql* begins or ends a transaction."""
    in_body = False
    for statement in outline(sql):
        if in_body:  # of a function in the standard's form, whose END is no COMMIT
            in_body = _END.match(statement) is None
        elif _CONTROL.match(statement):
            return True
        else:
            in_body = _ATOMIC.search(statement) is not None
    return False


def outlasts_transaction(sql: str) -> bool:
    """Whether *sql* may leave something in its session (a setting, a temporary table) that whoever comes next would meet."""
    return any(_LASTING.match(statement) for statement in outline(sql))
