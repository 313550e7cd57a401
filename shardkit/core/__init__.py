"""Pure decisions: no I/O, clock, randomness, environment or third party (hashring excepted, in placement)."""

from __future__ import annotations
