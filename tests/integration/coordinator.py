"""A coordinator that dies: ``coordinator.py CATALOG_URL PATIENCE_S STEP MARK TENANT...`` writes one order for each tenant."""

from __future__ import annotations

import os
import signal
import sys

from fleet import Order

from shardkit import ShardKit
from shardkit._sync import transaction


def main(catalog_url: str, patience_s: str, step: str, mark: str, *tenants: str) -> None:
    def die(reached: str) -> None:
        if reached == step:
            os.kill(os.getpid(), signal.SIGKILL)

    transaction.reached = die
    with ShardKit(catalog_url, connect_timeout_s=60) as kit, kit.transaction(*tenants, patience_s=int(patience_s)) as tx:
        for tenant in tenants:
            tx.session(tenant).add(Order(note=mark))


if __name__ == "__main__":
    main(*sys.argv[1:])
