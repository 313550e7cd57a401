"""Photos as files, by id; a file is whole or not there, and is never changed."""

from __future__ import annotations

import secrets
from pathlib import Path

SIZES = ("full", "thumb")


def path_of(photo_id: int, size: str) -> str:
    """Where a photo of one size is, below the media directory."""
    return f"{photo_id % 251:03d}/{photo_id}-{size}.jpg"


def store(directory: Path, photo_id: int, files: dict[str, bytes]) -> None:
    """Write the files of a photo."""
    for size, data in files.items():
        target = directory / path_of(photo_id, size)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_suffix(f".{secrets.token_hex(4)}")
        part.write_bytes(data)
        part.replace(target)


def remove(directory: Path, photo_id: int) -> None:
    """Remove them, as far as they are there."""
    for size in SIZES:
        (directory / path_of(photo_id, size)).unlink(missing_ok=True)
