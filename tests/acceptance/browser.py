"""A real Chromium for tests: the system's own, which is installed where that can be done; no browser is downloaded."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess

import pytest

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def chromium():
    """Path of Chromium; skips the test, and says so, where there is none and it cannot be installed."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", "chromium"]):
            env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
            subprocess.run(["apt-get", *command], env=env, check=False, capture_output=True, timeout=240)
        found = shutil.which("chromium")
    if found is None:
        pytest.skip("THE DASHBOARD WAS NOT TESTED IN A BROWSER: Chromium is not installed, and only root can install it")
    return found


@contextlib.contextmanager
def browser():
    """A running Chromium, by Playwright."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (extra: test)")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=chromium(), args=FLAGS)
        try:
            yield running
        finally:
            running.close()


class Tab:
    """A page, and what it said and asked for."""

    def __init__(self, context):
        self.page = context.new_page()
        self.complaints, self.asked = [], []
        self.page.on("console", lambda message: message.type == "error" and self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
