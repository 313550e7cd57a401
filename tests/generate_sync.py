"""Makes the sync twin of what is written once for asyncio: ``python tests/generate_sync.py [--check]``.

Plain word replacement, file by file; a rule that is never used is an error, and ``--check`` compares whole files.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAIRS = [("shardkit/_async", "shardkit/_sync"), ("tests/integration/async_", "tests/integration/sync_")]
BY_HAND = {"colour.py", "conftest.py"}
HEADER = "# Generated from {source} by tests/generate_sync.py: change that file instead.\n"
RULES = [
    (r"\nimport asyncio(?=\n)", ""),
    (r"asyncio\.sleep", "time.sleep"),
    (r"Callable\[(.*), Awaitable\[T\]\]", r"Callable[\1, T]"),
    (r", Awaitable\[None\]\]", ", None]"),
    (r"\bAsyncIterator\b", "Iterator"),
    (r"import Awaitable, Callable", "import Callable"),
    (r"shardkit\._async", "shardkit._sync"),
    (r"\basync (def|with|for)\b", r"\1"),
    (r"\bstream_scalars\b", "scalars"),
    (r"\bawait ", ""),
    (r"__a(enter|exit|iter)__", r"__\1__"),
    (
        r"\bAsync(ShardKit|ShardAccess|Unit|RoutedSession|FanOut|Outbox|RowStream|Servers|Transaction|Cache|Marking)\b",
        r"\1",
    ),
    (r"\bredis\.asyncio\b", "redis"),
    (r"written once for asyncio; ``(_?)sync(_?)`` is generated from it", r"generated from ``\1async\2``"),
]


def twin_of(text: str, *, source: str, used: set[int]) -> str:
    """The sync twin of *text*; the numbers of the rules that did something are added to *used*."""
    for number, (pattern, replacement) in enumerate(RULES):
        text, count = re.subn(pattern, replacement, text)
        if count:
            used.add(number)
    return HEADER.format(source=source) + text


def generate() -> dict[Path, str]:
    """Every generated file with what it should hold."""
    used: set[int] = set()
    made = {}
    for source_dir, target_dir in PAIRS:
        for source in sorted((ROOT / source_dir).glob("*.py")):
            if source.name not in BY_HAND:
                name = source.relative_to(ROOT).as_posix()
                made[ROOT / target_dir / source.name] = twin_of(source.read_text("utf-8"), source=name, used=used)
    unused = [RULES[n][0] for n in range(len(RULES)) if n not in used]
    if unused:
        raise SystemExit(f"rules that replaced nothing: {unused}")
    return made


def differences(made: dict[Path, str]) -> list[str]:
    """Names of generated files that are missing, outdated, or not generated from anything."""
    wrong = [p for p, text in made.items() if not p.exists() or p.read_text("utf-8") != text]
    folders = {p.parent for p in made}
    strangers = [p for d in folders for p in d.glob("*.py") if p not in made and p.name not in BY_HAND]
    return sorted(p.relative_to(ROOT).as_posix() for p in [*wrong, *strangers])


if __name__ == "__main__":
    files = generate()
    if "--check" in sys.argv:
        found = differences(files)
        sys.exit(f"not what would be generated: {', '.join(found)}" if found else 0)
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, "utf-8")
