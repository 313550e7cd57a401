"""Every test may use real servers; its directory is its marker."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.patience import patience

pytest_plugins = ["shardkit.testing"]

HERE = Path(__file__).parent
# How long an example took, or its making, says more of the machine than of the code.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
KINDS = {
    "unit": "no server",
    "sim": "no server, much chance",
    "integration": "real servers",
    "acceptance": "the installed program",
    "faults": "real servers, ill-treated",
}
LONG = {
    "test_cache_history.py",
    "test_dashboard.py",
    "test_demo.py",
    "test_docs.py",
    "test_fleet_faults.py",
    "test_isolate.py",
    "test_move_versions.py",
    "test_moves.py",
    "test_photos_browser.py",
}
"""Begun first: each is one worker's, and the other one would wait for the last of them."""
PATIENT = {"integration", "acceptance"}


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job; the programs under test would inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for kind, meaning in KINDS.items():
        config.addinivalue_line("markers", f"{kind}: {meaning}")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONG)
    for item in items:
        if item.path.is_relative_to(HERE):
            kind = item.path.relative_to(HERE).parts[0]
            if kind in KINDS:
                item.add_marker(kind)


@pytest.fixture(scope="module", autouse=True)
def patient(request):
    """Time-outs that a busy machine does not reach, in tests that are not about time-outs."""
    if request.path.relative_to(HERE).parts[0] not in PATIENT:
        yield
        return
    with patience():
        yield


@pytest.fixture
def eventually():
    """``eventually(condition)`` returns the condition's first true value, or fails after *within_s*."""

    def wait(condition, *, within_s=60.0):
        deadline = time.monotonic() + within_s
        pause = threading.Event()
        while not (value := condition()):
            if time.monotonic() > deadline:
                pytest.fail(f"still not so after {within_s:g} s: {condition}")
            pause.wait(0.01)
        return value

    return wait
