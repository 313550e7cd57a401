"""What is not the same in both colours."""

from __future__ import annotations

import pytest

from shardkit import ShardKit


@pytest.fixture
def open_kit(fleet):
    """``open_kit(pool_size=1)``: a kit of the module's cluster, closed after the test."""
    opened = []

    def make(**given):
        opened.append(ShardKit(settings=fleet.settings(**given)))
        return opened[-1]

    yield make
    for kit in opened:
        kit.close()


@pytest.fixture
def kit(open_kit):
    return open_kit()
