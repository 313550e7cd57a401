"""``python -m shardkit`` is the command line."""

from __future__ import annotations

from shardkit.cli import main

if __name__ == "__main__":
    main()
