"""What is not the same in both colours."""

from __future__ import annotations

import pytest

from shardkit import AsyncShardKit


@pytest.fixture
def opened():
    """Kits that the test's runner closes, inside the test's event loop."""
    return []


@pytest.fixture
def open_kit(fleet, opened):
    """``open_kit(pool_size=1)``: a kit of the module's cluster, closed after the test."""

    def make(**given):
        kit = AsyncShardKit(settings=fleet.settings(**given))
        opened.append(kit)
        return kit

    return make


@pytest.fixture
def kit(open_kit):
    return open_kit()
