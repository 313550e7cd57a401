"""Thousands of people on a real cluster: ``python load.py`` (people), ``python load.py --rebalance`` (while shards move).

Locust plays them (``load_users.py``); afterwards the database is asked: was every acknowledged like kept, once, on both sides?
``python load.py feed`` measures one page instead: requests per second with 1, 2 and 4 workers, with the cache and without;
``python load.py choice`` what it costs to write a photo into feeds, and to look for the famous when a feed is read.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import http.client
import itertools
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from flask import session
from flask_wtf.csrf import generate_csrf
from sqlalchemy import delete, insert, select, update

from photos import accounts, create_app, feeds
from photos.cluster import make_cluster
from photos.demo import drain, ended, free_port, gunicorn, wait_for
from photos.effects import handlers
from photos.models import Comment, FeedEntry, Follow, Follower, Like, LikedBy, Photo, User
from shardkit import Settings, ShardKit, run_local

HERE = Path(__file__).parent
FAMOUS_FROM = 200
PHOTOS_EACH = 3
QUICK = "scrypt:1024:8:1"  # nobody logs in here, their cookies are made
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


class Stage:
    """A cluster with people on it, and what is needed to serve them."""

    def __init__(self, stack: contextlib.ExitStack, *, people: int, shards: int, servers: int, redis: bool = True) -> None:
        self.home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="photos-load-")))
        self.cluster = run_local(servers=servers + 1, redis=redis, fast=True)
        stack.callback(self.cluster.down)
        self.urls = {server.name: server.url for server in self.cluster.servers}
        self.spare = f"pg{servers + 1}"
        first = {name: url for name, url in self.urls.items() if name != self.spare}
        self.settings = Settings(catalog_url=self.cluster.catalog_url, servers=self.urls, redis_url=self.cluster.redis_url)
        make_cluster(self.settings, first, shards=shards)
        self.kit = stack.enter_context(ShardKit(settings=self.settings))
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")])),
            "SHARDKIT_CONFIG": str(self.cluster.settings_file),
            "PHOTOS_SECRET_KEY": secrets.token_hex(32),
            "PHOTOS_MEDIA": str(self.home / "media"),
            "PHOTOS_SESSION_COOKIE_SECURE": "false",
            "PHOTOS_FAMOUS_FROM": str(FAMOUS_FROM),
        }
        self.people: list[User] = []
        self.photos: list[tuple[int, str]] = []
        self._settle(people)

    def _settle(self, count: int) -> None:
        """People who follow one another by Zipf's law, with three photos each: as their deeds would have left it."""
        luck = random.Random(11)
        with ThreadPoolExecutor(8) as pool:
            self.people = list(pool.map(self._join, range(count)))
            self.photos = [photo for made in pool.map(self._share, self.people) for photo in made]
            follows, followers = acquaint(self.people, luck)
            famous = {tenant for tenant, fans in followers.items() if len(fans) >= FAMOUS_FROM}
            shown: dict[str, list[dict[str, object]]] = {person.tenant_id: [] for person in self.people}
            for photo, owner in self.photos:
                for fan in [owner, *(followers[owner] if owner not in famous else [])]:
                    shown[fan].append({"tenant_id": fan, "photo_id": photo, "owner": owner})

            def write(person: User) -> None:
                me, mine, fans = person.tenant_id, follows[person.tenant_id], followers[person.tenant_id]
                rows = [{"tenant_id": me, "whom": t, "name": u.name, "famous": t in famous} for t, u in mine.items()]
                with self.kit.begin(me) as work:
                    work.execute(insert(Follow), rows)
                    work.execute(insert(FeedEntry), shown[me])
                    if fans:
                        work.execute(insert(Follower), [{"tenant_id": me, "who": who} for who in fans])
                    counts = {"photos": PHOTOS_EACH, "following": len(mine), "followers": len(fans), "famous": me in famous}
                    work.execute(update(User).where(User.name == person.name).values(**counts))

            list(pool.map(write, self.people))
        luck.shuffle(self.photos)

    def _join(self, number: int) -> User:
        name = f"p{number:05}"
        return accounts.sign_up(self.kit, name=name, full_name=name, password=name * 2, method=QUICK)

    def _share(self, person: User) -> list[tuple[int, str]]:
        with self.kit.begin(person.tenant_id) as work:
            made = [Photo(author=person.name, caption="", width=640, height=480, nonce=str(n)) for n in range(PHOTOS_EACH)]
            work.add_all(made)
            work.flush()
            return [(photo.id, person.tenant_id) for photo in made]

    def cookies(self) -> list[dict[str, str]]:
        """Who they are, logged in."""
        app = create_app(
            **{key: self.environment[f"PHOTOS_{key}"] for key in ("SECRET_KEY", "MEDIA")}, SHARDKIT_CATALOG_URL="x"
        )
        found = []
        for person in self.people:
            with app.test_request_context():
                session.update(tenant=person.tenant_id, name=person.name)
                token = generate_csrf()
                serializer = app.session_interface.get_signing_serializer(app)
                cookie = serializer.dumps(dict(session))
            found.append({"tenant": person.tenant_id, "name": person.name, "cookie": cookie, "token": token})
        return found

    @contextlib.contextmanager
    def served(self, workers: int, *, cached: bool = True):
        """Gunicorn and a worker for effects; gives the port and Gunicorn's process id."""
        environment = dict(self.environment)
        if not cached:
            environment["SHARDKIT_REDIS_URL"] = ""
        port = free_port()
        with contextlib.ExitStack() as stack:
            stack.enter_context(ended(subprocess.Popen([sys.executable, "-m", "photos", "work"], env=environment)))
            command = gunicorn(port, workers, "--log-level", "warning")
            web = stack.enter_context(ended(subprocess.Popen(command, env=environment, cwd=HERE)))
            wait_for(port)
            yield port, web.pid


def acquaint(people: list[User], luck: random.Random) -> tuple[dict[str, dict[str, User]], dict[str, list[str]]]:
    """Whom each of *people* follows, the first the most, and who follows each."""
    ranks = list(itertools.accumulate(1 / (rank + 1) for rank in range(len(people))))
    follows, followers = {}, {person.tenant_id: [] for person in people}
    for person in people:
        chosen = {them.tenant_id: them for them in luck.choices(people, cum_weights=ranks, k=20) if them is not person}
        follows[person.tenant_id] = chosen or {people[-1].tenant_id: people[-1]}
        for them in follows[person.tenant_id]:
            followers[them].append(person.tenant_id)
    return follows, followers


def play(given) -> int:
    """People for a while; then the questions to the database. Gives the exit code."""
    with contextlib.ExitStack() as stack:
        say(f"{given.people} people on {given.shards} shards and {given.servers} servers ...")
        stage = Stage(stack, people=given.people, shards=given.shards, servers=given.servers, redis=not given.no_redis)
        who, deeds = stage.home / "who.json", stage.home / "deeds"
        who.write_text(json.dumps({"people": stage.cookies(), "photos": [photo for photo, _ in stage.photos]}), "utf-8")
        deeds.touch()
        port, web = stack.enter_context(stage.served(given.workers))
        environment = {
            **stage.environment,
            "PHOTOS_WHO": str(who),
            "PHOTOS_DEEDS": str(deeds),
            "PHOTOS_THINK_S": str(given.think_s),
        }
        locust = [sys.executable, "-m", "locust", "-f", str(HERE / "load_users.py"), "--headless", "--only-summary"]
        locust += ["-u", str(given.users), "-r", str(max(10, given.users // 40)), "-t", f"{given.seconds:.0f}s", "-s", "60"]
        with ended(subprocess.Popen([*locust, "-H", f"http://127.0.0.1:{port}"], env=environment)) as users:
            moved = rebalance(stage, environment, users) if given.rebalance else ""
            code = users.wait()
        say(f"CPU of the web workers: {cpu_s(web):.1f} s")
        lag = stage.kit.outbox.lag().waiting
        drain(stage.kit, handlers(stage.kit, famous_from=FAMOUS_FROM))
        wrong = [*check(stage.kit, deeds), *(["locust saw failures"] if code else [])]
        say(f"{moved}{lag} effects were still under way at the end, and then delivered")
        say("\n".join(f"WRONG: {one}" for one in wrong) or "no error, no like lost, none doubled")
        return 1 if wrong else 0


def rebalance(stage: Stage, environment: dict[str, str], users: subprocess.Popen) -> str:
    """A third server, and a third of the shards to it, while people click."""
    threading.Event().wait(15)
    for command in (["server", "add", stage.spare, "--yes"], ["rebalance", "--yes"]):
        began = time.monotonic()
        subprocess.run([sys.executable, "-m", "shardkit", *command], env=environment, check=True)
    over = "" if users.poll() is None else " (people had gone already by its end: give more --seconds)"
    stage.kit.refresh()
    count = len(stage.kit.map.shards_on(stage.spare))
    return f"{count} shards moved to {stage.spare} in {time.monotonic() - began:.0f} s, meanwhile{over}\n"


def check(kit: ShardKit, deeds: Path) -> list[str]:
    """What is not as it was acknowledged, or not the same on both sides."""
    mine = {(row.tenant_id, row.photo_id) for row in kit.fan_out(select(Like.tenant_id, Like.photo_id))}
    theirs = Counter((row.who, row.photo_id) for row in kit.fan_out(select(LikedBy.who, LikedBy.photo_id)))
    counted = {row.id: row.likes for row in kit.fan_out(select(Photo.id, Photo.likes))}
    said = Counter(row.nonce for row in kit.fan_out(select(Comment.nonce)))
    comments = sum(row.comments for row in kit.fan_out(select(Photo.comments)))
    last: dict[tuple[str, int], str] = {}
    lost_comments = 0
    for line in deeds.read_text("utf-8").splitlines():
        what, tenant, photo, *nonce = line.split()
        if what == "comment":
            lost_comments += said[f"{tenant}:{nonce[0]}"] != 1
        else:
            last[tenant, int(photo)] = what
    lost = [key for key, what in last.items() if what == "like" and key not in mine]
    kept = [key for key, what in last.items() if what == "unlike" and key in mine]
    per_photo = Counter(photo for _, photo in mine)
    wrong = [photo for photo, likes in counted.items() if likes != per_photo[photo]]
    acknowledged = Counter(line.split()[0] for line in deeds.read_text("utf-8").splitlines())
    say(f"acknowledged: {dict(acknowledged)}; in the database: {len(mine)} likes, {sum(said.values())} comments")
    problems = {
        "acknowledged likes that are not there": len(lost),
        "likes taken back that are still there": len(kept),
        "likes that the two sides do not both have": len(mine ^ set(theirs)),
        "likes that are there twice": sum(count > 1 for count in theirs.values()),
        "photos whose count is another one": len(wrong),
        "acknowledged comments that are not there once": lost_comments,
        "comments not counted": abs(comments - sum(said.values())),
        "deeds nobody knows the outcome of": acknowledged["unknown"],
    }
    return [f"{name}: {number}" for name, number in problems.items() if number]


def feed(given) -> int:
    """Requests per second for the feed; and what each costs in CPU, which other load on the machine changes little."""
    with contextlib.ExitStack() as stack:
        stage = Stage(stack, people=given.people, shards=given.shards, servers=given.servers)
        cookies = [who["cookie"] for who in stage.cookies()]
        say(f"{given.people} people, {given.shards} shards; {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}")
        say(f"{'workers':>8} {'cache':>6} {'requests/s':>11} {'median ms':>10} {'CPU ms web':>11} {'CPU ms servers':>15}")
        for workers in (1, 2, 4):
            for cached in (True, False):
                with stage.served(workers, cached=cached) as (port, web):
                    ask(port, cookies, seconds=3)  # warm
                    before = cpu_s(web), servers_cpu_s(stage)
                    took, times = ask(port, cookies, seconds=given.seconds)
                    after = cpu_s(web), servers_cpu_s(stage)
                count = len(times)
                cost = [(b - a) * 1000 / count for a, b in zip(before, after, strict=True)]
                median = sorted(times)[count // 2] * 1000
                line = f"{count / took:>11.1f} {median:>10.1f} {cost[0]:>11.2f} {cost[1]:>15.2f}"
                say(f"{workers:>8} {'yes' if cached else 'no':>6} {line}")
    return 0


def choice(given) -> int:
    """Write into feeds, or look when they are read? What each costs."""
    with contextlib.ExitStack() as stack:
        stage = Stage(stack, people=given.people, shards=given.shards, servers=given.servers)
        kit, (star, *fans) = stage.kit, stage.people
        with kit.begin(star.tenant_id) as work:
            work.execute(update(User).where(User.name == star.name).values(famous=False))
            work.execute(delete(Follower))
            work.execute(insert(Follower), [{"tenant_id": star.tenant_id, "who": fan.tenant_id} for fan in fans])
            photo = Photo(author=star.name, caption="", width=1, height=1, nonce="choice")
            work.add(photo)
            work.flush()
            kit.outbox.send(work, to=star.tenant_id, kind="posted", payload={"photo": photo.id})
        for fan in fans:
            with kit.begin(fan.tenant_id) as work:
                work.merge(Follow(tenant_id=fan.tenant_id, whom=star.tenant_id, name=star.name, famous=False))
        took = cost(lambda: drain(kit, handlers(kit, famous_from=10**6)))
        say(f"written into {len(fans)} feeds: {took[0] / len(fans):.2f} ms of CPU each, in the worker, per photo")
        for count in (0, 1, 4, 8, 9, 32):
            readers = fans[-20:]
            for reader in readers:
                with kit.begin(reader.tenant_id) as work:
                    for follow in work.scalars(select(Follow).where(Follow.famous)):
                        follow.famous = False
                    for them in stage.people[:count]:
                        work.merge(Follow(tenant_id=reader.tenant_id, whom=them.tenant_id, name=them.name, famous=True))
            visit = [functools.partial(feeds.feed, kit, reader.tenant_id) for reader in readers]
            for _ in range(2):
                cost(lambda todo=visit: [one() for one in todo])  # warm
            took = cost(lambda todo=visit * 5: [one() for one in todo])
            each = took[0] / 100, took[1] / 100
            say(f"read with {count:>2} famous people followed: {each[0]:.1f} ms of CPU, {each[1]:.1f} ms, per page")
    return 0


def cost(work) -> tuple[float, float]:
    """CPU of this process and time of *work*, in ms."""
    cpu, began = time.process_time(), time.monotonic()
    work()
    return (time.process_time() - cpu) * 1000, (time.monotonic() - began) * 1000


def ask(port: int, cookies: list[str], *, seconds: float) -> tuple[float, list[float]]:
    """Eight visitors who load their feeds as fast as they can; how long it took (s), and each answer's time (s)."""
    end, times = time.monotonic() + seconds, []

    def visit(number: int) -> None:
        connection, mine = http.client.HTTPConnection("127.0.0.1", port, timeout=60), itertools.cycle(cookies[number::8])
        while time.monotonic() < end:
            began = time.monotonic()
            connection.request("GET", "/", headers={"Cookie": f"session={next(mine)}"})
            answer = connection.getresponse()
            page = answer.read()
            if answer.status != 200 or b"Your feed" not in page:
                raise RuntimeError(f"{answer.status}: {page[-200:]!r}")
            times.append(time.monotonic() - began)
        connection.close()

    began = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(visit, range(8)))
    return time.monotonic() - began, times


def cpu_s(pid: int) -> float:
    """CPU seconds of a process and all below it, as far as they live."""
    below: dict[int, list[int]] = {}
    used: dict[int, float] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text("utf-8").rpartition(")")[2].split()
            one = int(path.parent.name)
            below.setdefault(int(fields[1]), []).append(one)
            used[one] = sum(map(int, fields[11:15])) / CLOCK_TICKS  # its own and of children that ended
    total, todo = 0.0, [pid]
    while todo:
        one = todo.pop()
        total += used.get(one, 0.0)
        todo += below.get(one, [])
    return total


def servers_cpu_s(stage: Stage) -> float:
    """CPU seconds of the PostgreSQL servers and of Redis."""
    return sum(cpu_s(pid) for pid in stage.cluster.running().values())


def say(line: str) -> None:
    """To whoever started this."""
    print(line, flush=True)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", choices=("people", "feed", "choice"), default="people")
    parser.add_argument("--people", type=int, default=2000, help="accounts")
    parser.add_argument("--users", type=int, default=1000, help="people who are there at the same time")
    parser.add_argument("--think-s", type=float, default=2.0, help="seconds between two pages, up to three times it")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--servers", type=int, default=2)
    parser.add_argument("--shards", type=int, default=64)
    parser.add_argument("--rebalance", action="store_true", help="move a third of the shards meanwhile")
    parser.add_argument("--no-redis", action="store_true")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that nothing is left running
    return {"people": play, "feed": feed, "choice": choice}[given.what](given)


if __name__ == "__main__":
    sys.exit(main())
