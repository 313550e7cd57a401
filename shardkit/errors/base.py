"""What every error says: what became of the work, and whether it may be repeated."""

from __future__ import annotations

import enum

DOCS = "docs/reference/errors.md"


class Outcome(enum.Enum):
    """What became of the work an error interrupted (law 5)."""

    DONE = "done"
    NOT_DONE = "not done"
    UNKNOWN = "unknown"


class ShardKitError(Exception):
    """Something went wrong in shardkit.

    ``outcome`` says whether the work took effect, ``retryable`` whether the same unit of work may simply be run again,
    ``code`` names the error for good; its page is ``docs/reference/errors.md#<code>``.
    """

    code = "SK000"
    outcome: Outcome = Outcome.NOT_DONE
    retryable: bool = False

    def __init__(self, message: str | None = None, *, outcome: Outcome | None = None) -> None:
        super().__init__(message or (self.__doc__ or "").partition("\n")[0])
        if outcome is not None:
            self.outcome = outcome

    @property
    def docs(self) -> str:
        """Where this error is explained, relative to the project."""
        return f"{DOCS}#{self.code.lower()}"

    def __str__(self) -> str:
        return f"{super().__str__()} [{self.code}; {self.outcome.value}]"
