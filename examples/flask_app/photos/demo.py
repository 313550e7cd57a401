"""Everything at once, to look at: servers, shards, people, photos, Gunicorn, a worker, and people who go on clicking."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from photos import samples, social
from photos.accounts import RefusedError
from photos.cluster import make_cluster
from photos.effects import handlers
from photos.feeds import SHOWN
from photos.models import Photo, User
from shardkit import Settings, ShardKit, ShardKitError, run_local

FAMOUS_FROM = 25
ROOT = Path(__file__).parents[1]


@dataclass(slots=True)
class Demo:
    """One demo, as the command line asked for it."""

    port: int
    servers: int
    shards: int
    people: int
    workers: int
    no_redis: bool
    no_traffic: bool
    data_dir: Path | None
    seconds: float | None

    def run(self) -> None:
        """Start everything, print the URL, go on until Ctrl-C, stop everything."""
        with contextlib.ExitStack() as stack:
            home = self.data_dir or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="photos-")))
            home.mkdir(parents=True, exist_ok=True)
            began = time.monotonic()
            say(f"Starting {self.servers} PostgreSQL servers{'' if self.no_redis else ' and a Redis-protocol server'} ...")
            kept = home / "cluster" if self.data_dir else None
            cluster = run_local(servers=self.servers, redis=not self.no_redis, data_dir=kept)
            stack.callback(cluster.down)
            kit = stack.enter_context(self._kit(cluster, fresh=not (home / "ready").exists()))
            if not (home / "ready").exists():
                self._fill(kit, home)
                (home / "ready").touch()
            environment = self._environment(cluster, home)
            stack.enter_context(ended(subprocess.Popen([sys.executable, "-m", "photos", "work"], env=environment)))
            port = self.port or free_port()
            stack.enter_context(ended(subprocess.Popen(gunicorn(port, self.workers), env=environment, cwd=ROOT)))
            url = f"http://127.0.0.1:{port}/"
            wait_for(port)
            say(f"\nReady in {time.monotonic() - began:.0f} s:  {url}\n")
            say(f"Log in as ada, ben, chiara ... with the password {samples.PASSWORD!r}, or join.")
            say(f"Meanwhile:  SHARDKIT_CONFIG={cluster.settings_file} shardkit status")
            say("            shardkit rebalance   (with the same setting) moves shards while people click")
            say("Ctrl-C ends it." if self.seconds is None else f"It ends after {self.seconds:.0f} s.")
            self._until_told(kit)

    def _kit(self, cluster, *, fresh: bool) -> ShardKit:
        urls = {server.name: server.url for server in cluster.servers}
        settings = Settings(catalog_url=cluster.catalog_url, servers=urls, redis_url=cluster.redis_url)
        if fresh:
            say(f"Making {self.shards} shards ...")
            make_cluster(settings, urls, shards=self.shards)
        return ShardKit(settings=settings)

    def _environment(self, cluster, home: Path) -> dict[str, str]:
        key = home / "secret-key"
        if not key.exists():
            key.touch(mode=0o600)
            key.write_text(secrets.token_hex(32), "utf-8")
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            "SHARDKIT_CONFIG": str(cluster.settings_file),
            "PHOTOS_SECRET_KEY": key.read_text("utf-8"),
            "PHOTOS_MEDIA": str(home / "media"),
            "PHOTOS_SESSION_COOKIE_SECURE": "false",  # http, on this machine only
            "PHOTOS_FAMOUS_FROM": str(FAMOUS_FROM),
        }

    def _fill(self, kit: ShardKit, home: Path) -> None:
        luck = random.Random(7)
        say(f"{self.people} people join, follow one another and share photos ...")
        people = samples.people(kit, self.people, luck=luck)
        for person in people:  # the first are followed most
            for them in {luck.choice(people[: max(2, int(luck.paretovariate(0.8)))]) for _ in range(12)} - {person}:
                social.follow(kit, person, them)
        deliver = handlers(kit, famous_from=FAMOUS_FROM)
        drain(kit, deliver)
        pictures = samples.pictures(luck=luck)
        photos = []
        for _ in range(3):
            for person in luck.sample(people, min(len(people), 30)):
                made = samples.upload(kit, person, next(pictures), directory=home / "media", luck=luck)
                photos.append((made, person.tenant_id))
        for person in people:
            for photo, owner in luck.sample(photos, min(len(photos), 20)):
                social.like(kit, person, photo, owner)
                if luck.random() < 0.15:
                    said = luck.choice(samples.SAID)
                    social.comment(kit, person, photo, owner, text=said, nonce=f"{person.name}:{photo}")
        drain(kit, deliver)

    def _until_told(self, kit: ShardKit) -> None:
        end = threading.Event()
        traffic = threading.Thread(target=click, args=(kit, end), daemon=True)
        if not self.no_traffic:
            traffic.start()
        try:
            end.wait(self.seconds)
        except KeyboardInterrupt:
            say("\nStopping ...")
        finally:
            end.set()
            if traffic.is_alive():
                traffic.join(10)


def click(kit: ShardKit, end: threading.Event) -> None:
    """People who like and comment, a few times a second."""
    luck = random.Random()
    people = list(kit.fan_out(select(User.tenant_id, User.name)))
    while not end.wait(luck.uniform(0.1, 0.6)):
        try:
            photos = list(kit.fan_out(select(*SHOWN).order_by(Photo.id.desc()).limit(60)))
            person, photo = luck.choice(people), luck.choice(photos)
            if luck.random() < 0.8:
                social.like(kit, person, photo.id, photo.tenant_id)
            else:
                said, nonce = luck.choice(samples.SAID), f"{luck.getrandbits(64):x}"
                social.comment(kit, person, photo.id, photo.tenant_id, text=said, nonce=nonce)
        except (ShardKitError, DBAPIError, RefusedError) as exc:
            say(f"somebody could not do what they wanted: {exc}")


def drain(kit: ShardKit, deliver) -> None:
    """Deliver until nothing waits."""
    while kit.outbox.deliver(deliver, limit=1000):
        pass


def gunicorn(port: int, workers: int, *more: str) -> list[str]:
    """The command that serves."""
    bind = ["--bind", f"127.0.0.1:{port}", "--workers", str(workers)]
    return [sys.executable, "-m", "gunicorn", "--config", str(ROOT / "gunicorn.conf.py"), *bind, *more, "photos:create_app()"]


@contextlib.contextmanager
def ended(process: subprocess.Popen):
    """Stop *process* at the end of the block."""
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    """One that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


def wait_for(port: int, *, within_s: float = 60.0) -> None:
    """Until somebody listens there. Raises TimeoutError."""
    deadline, pause = time.monotonic() + within_s, threading.Event()
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing listens on port {port}")
        pause.wait(0.05)


def say(line: str) -> None:
    """To whoever started this."""
    print(line, flush=True)
