"""One command starts everything, and leaves nothing behind; with a directory it goes on where it was."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_demo_starts_prints_its_url_and_goes_on_the_next_time(tmp_path):
    command = [sys.executable, "-m", "photos", "demo", "--port", "0", "--people", "6", "--shards", "8", "--servers", "1"]
    path = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    for time in ("first", "second"):
        done = subprocess.run(
            [*command, "--seconds", "2", "--data-dir", str(tmp_path / "kept")],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
            timeout=250,
        )
        assert done.returncode == 0, done.stderr
        assert "http://127.0.0.1:" in done.stdout
        assert ("6 people join" in done.stdout) == (time == "first")
        assert "somebody could not" not in done.stdout
