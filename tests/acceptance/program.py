"""Runs the command line as a shell would: a process of its own, with its two streams and its exit code."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import shardkit
from tests import patience

ROOT = Path(shardkit.__file__).parents[1]
PROGRAM = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from shardkit.cli import main; main(prog_name='shardkit')"


def environment(**variables: str) -> dict[str, str]:
    """The process's own, without settings of shardkit but those given, and the patience of these tests."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("SHARDKIT_") or key == "SHARDKIT_PG_BIN"}
    return {**kept, **patience.VARIABLES, **variables}


def run(*arguments, code=0, env=None, **how):
    """``shardkit ARGUMENTS`` ended with *code*, and never with a traceback."""
    how.setdefault("stdin", subprocess.DEVNULL if "input" not in how else None)
    if how["stdin"] is None:
        del how["stdin"]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        env=environment(**(env or {})),
        timeout=240,
        **how,
    )
    assert done.returncode == code, done
    assert "Traceback" not in done.stderr
    return done


def on_a_terminal(command, *, env, columns=120, **how) -> tuple[int, str]:
    """The exit code of *command*, and all it drew on a terminal of so many columns."""
    mine, theirs = pty.openpty()
    env = {**env, "TERM": "xterm-256color", "COLUMNS": str(columns)}
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env, **how) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                part = os.read(mine, 65536)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            shown += part
        code = process.wait(120)
    os.close(mine)
    return code, shown.decode()


def refused(*arguments, code=1, **how):
    """The one line on stderr of a command that was refused; nothing is on stdout."""
    done = run(*arguments, code=code, **how)
    assert done.stdout == ""
    line = done.stderr.rstrip("\n").splitlines()[-1]
    assert line.lower().startswith("error: ")
    return line


def settings_file(path: Path, databases) -> Path:
    """A settings file for *databases*, as `shardkit local up` writes one."""
    lines = [f'catalog_url = "{databases.catalog_url}"']
    for name, url in databases.servers.items():
        lines += [f"[servers.{name}]", f'url = "{url}"']
    path.write_text("\n".join(lines), "utf-8")
    return path
