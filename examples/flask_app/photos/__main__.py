"""``python -m photos demo`` starts everything; ``python -m photos work`` carries effects between shards, beside Gunicorn."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import threading
from pathlib import Path

from photos.effects import handlers
from shardkit import ShardKit
from shardkit.contrib.flask.extension import settings_of


def work(*, famous_from: int) -> None:
    """Deliver effects until told to stop."""
    logging.basicConfig(level=logging.WARNING)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with ShardKit(settings=settings_of({})) as kit:
        kit.outbox.work(handlers(kit, famous_from=famous_from), until=stop.is_set, every_s=0.2)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m photos", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    worker = commands.add_parser("work", help="deliver likes, follows and new photos to the shards of others")
    worker.add_argument("--famous-from", type=int, default=int(os.environ.get("PHOTOS_FAMOUS_FROM", "1000")))
    demo = commands.add_parser("demo", help="a local cluster, people, photos, traffic, and a URL")
    demo.add_argument("--port", type=int, default=8000, help="0 for a free one")
    demo.add_argument("--servers", type=int, default=2)
    demo.add_argument("--shards", type=int, default=64)
    demo.add_argument("--people", type=int, default=40)
    demo.add_argument("--workers", type=int, default=2)
    demo.add_argument("--no-redis", action="store_true", help="without a cache")
    demo.add_argument("--no-traffic", action="store_true")
    demo.add_argument("--data-dir", type=Path, help="keep everything there, and go on with it next time")
    demo.add_argument("--seconds", type=float, help="end by itself after so long")
    given = parser.parse_args()
    if given.command == "work":
        work(famous_from=given.famous_from)
    else:
        from photos.demo import Demo

        signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that nothing is left running
        Demo(**{k: v for k, v in vars(given).items() if k != "command"}).run()


if __name__ == "__main__":
    main()
