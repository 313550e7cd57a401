"""The shell completes commands and options: what the reference page says of completion works."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from tests.acceptance.program import run


def completed(line):
    words = line.split(" ")
    env = {"_SHARDKIT_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    return {found.partition(",")[2] for found in run(env=env).stdout.splitlines()}


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("shardkit do", {"doctor"}),
        ("shardkit moves res", {"resume"}),
        ("shardkit doctor --th", {"--thorough"}),
        ("shardkit init --tenant-type ", {"str", "int"}),
    ],
)
def test_words_are_completed(line, wanted):
    assert completed(line) == wanted


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_has_its_script(shell):
    script = run(env={"_SHARDKIT_COMPLETE": f"{shell}_source"}).stdout
    assert f"_SHARDKIT_COMPLETE={shell}_complete" in script
    if shutil.which(shell):
        checked = subprocess.run([shell, "-n"], input=script, text=True, capture_output=True, check=False)
        assert checked.returncode == 0, checked.stderr
