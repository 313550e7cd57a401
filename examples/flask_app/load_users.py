"""One person with a phone, as locust plays them: ``locust -f load_users.py``, started by ``load.py``, which says who they are.

Every answer is checked, and every deed that was acknowledged is written down, for ``load.py`` to look for in the database.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import re
from pathlib import Path

import gevent
from locust import FastHttpUser, between, events, task

WHO = json.loads(Path(os.environ["PHOTOS_WHO"]).read_text("utf-8"))
PEOPLE, PHOTOS = WHO["people"], WHO["photos"]
RANKS = list(itertools.accumulate(1 / (rank + 1) ** 1.1 for rank in range(len(PEOPLE))))
PHOTO_RANKS = list(itertools.accumulate(1 / (rank + 1) ** 1.1 for rank in range(len(PHOTOS))))
DEEDS = Path(os.environ["PHOTOS_DEEDS"]).open("a", buffering=1, encoding="utf-8")  # noqa: SIM115  # as long as the process
SHOWN = re.compile(r'href="/p/(\d+)"')
TRIES = 8
_turns = itertools.cycle(range(len(PEOPLE)))
patience = {"waited": 0}


@events.test_stop.add_listener
def _say(**_):
    print(f"answers 503 that were tried again as they asked: {patience['waited']}")
    DEEDS.close()


class Person(FastHttpUser):
    """Somebody who is logged in already, and looks more than they do."""

    wait_time = between(float(os.environ.get("PHOTOS_THINK_S", "1")), 3 * float(os.environ.get("PHOTOS_THINK_S", "1")))
    connection_timeout = network_timeout = 60.0

    def on_start(self):
        self.who = PEOPLE[next(_turns)]
        self.seen = []

    def call(self, name, path, *, must="", **form):
        """One request, repeated when the answer says 503 and when to come back; gives the text, or None for a failure."""
        data = {"csrf_token": self.who["token"], **form} if form or name.startswith("POST") else None
        headers = {"Cookie": f"session={self.who['cookie']}", **({"HX-Request": "true"} if data else {})}
        how = {"name": name, "data": data, "headers": headers, "catch_response": True}
        for _ in range(TRIES):
            with self.client.request("POST" if data else "GET", path, **how) as got:
                if got.status_code == 503 and got.headers.get("Retry-After"):
                    got.success()
                    patience["waited"] += 1
                elif got.status_code == 200 and must in (got.text or ""):
                    got.success()
                    return got.text
                else:
                    got.failure(f"{got.status_code}: {(got.text or '')[-200:]}")
                    return None
            gevent.sleep(1)
        got = f"{name}: 503 for {TRIES} s"
        self.environment.events.request.fire(
            request_type="GAVE UP", name=name, response_time=0, response_length=0, exception=RuntimeError(got), context={}
        )
        return None

    @task(12)
    def feed(self):
        page = self.call("GET feed", "/", must="Your feed")
        self.seen = [int(photo) for photo in SHOWN.findall(page or "")]

    @task(3)
    def profile(self):
        self.call("GET profile", f"/u/{self.popular()['name']}", must="follow")

    @task(3)
    def photo(self):
        self.call("GET photo", f"/p/{self.some_photo()}", must="comments")

    @task(1)
    def explore(self):
        self.call("GET explore", "/explore", must="Explore")

    @task(5)
    def like(self):
        self.deed(self.some_photo(), "like")

    @task(1)
    def unlike(self):
        self.deed(self.some_photo(), "unlike")

    @task(1)
    def comment(self):
        photo, nonce = self.some_photo(), f"{random.getrandbits(80):020x}"
        if self.call("POST comment", f"/p/{photo}/comments", text="Nice!", nonce=nonce) is not None:
            DEEDS.write(f"comment {self.who['tenant']} {photo} {nonce}\n")

    @task(1)
    def follow(self):
        them = self.popular()
        if them is not self.who:
            self.call("POST follow", f"/u/{them['name']}/follow", must="Following")

    def deed(self, photo, what):
        """Like or unlike; every third time it is sent twice at once, by a nervous finger."""
        twice = random.random() < 0.3
        path, name = f"/p/{photo}/{what}", f"POST {what}"
        sent = [gevent.spawn(self.call, name, path) for _ in range(2 if twice else 1)]
        gevent.joinall(sent)
        if all(one.value is not None for one in sent):
            DEEDS.write(f"{what} {self.who['tenant']} {photo}\n")
        else:
            DEEDS.write(f"unknown {self.who['tenant']} {photo}\n")

    def popular(self):
        return random.choices(PEOPLE, cum_weights=RANKS)[0]

    def some_photo(self):
        if self.seen and random.random() < 0.5:
            return random.choice(self.seen)
        return random.choices(PHOTOS, cum_weights=PHOTO_RANKS)[0]
