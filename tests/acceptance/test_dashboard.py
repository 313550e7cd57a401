"""The dashboard in a real browser while shards move; who may see it, and what it may do."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from flask import Flask
from fleet import Order, fleet_on, tenants_of
from sqlalchemy import select

from shardkit import ShardKit, run_local
from shardkit.contrib.dashboard import dashboard
from shardkit.core.names import schema_name
from shardkit.move import run as moving
from shardkit.move.options import MoveOptions
from tests.acceptance.browser import Tab, browser
from tests.acceptance.program import PROGRAM, environment, refused, run, settings_file
from tests.driverclock import driver_clock

WAIT_MS = 60_000
SHARDS = 16


@pytest.fixture(scope="module")
def cluster():
    """A cluster of its own: its moves leave slots behind for as long as they run."""
    with run_local(servers=2, redis=True, trust=True, fast=True) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def fleet(cluster):
    with fleet_on(cluster, shard_count=SHARDS) as fleet, ShardKit(settings=fleet.settings(count_loads=False)) as kit:
        for shard in range(SHARDS):
            with kit.begin(tenants_of(fleet.map, shard=shard, count=1)[0]) as session:
                session.add_all(Order(note=f"{shard} {number}") for number in range(1 + 10 * shard))
        yield fleet


@pytest.fixture(scope="module")
def chrome():
    with browser() as running:
        yield running


@pytest.fixture(scope="module")
def config(fleet, cluster, tmp_path_factory):
    path = settings_file(tmp_path_factory.mktemp("settings") / "shardkit.toml", fleet)
    path.write_text(f'redis_url = "{cluster.redis_url}"\n' + path.read_text())
    return path


@contextmanager
def served(config, *arguments):
    """The program, and the address it prints."""
    command = [sys.executable, "-c", PROGRAM, "dashboard", "--port", "0", "--every", "0.3", "--config", str(config), *arguments]
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), stdin=subprocess.DEVNULL
    )
    try:
        address = running.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:"), running.stderr.read() if running.poll() is not None else address
        yield address, running
    finally:
        if running.poll() is None:
            running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=120)
        assert "Traceback" not in said, said
        assert running.returncode == 0


@pytest.fixture(scope="module")
def address(config):
    """One dashboard for the tests that only look."""
    with served(config) as (address, _):
        yield address


@contextmanager
def opened(chrome, address, **context):
    made = chrome.new_context(**{"viewport": {"width": 1300, "height": 900}, **context})
    made.set_default_timeout(WAIT_MS)
    try:
        tab = Tab(made)
        tab.page.goto(address)
        tab.page.wait_for_selector(".cell")
        yield tab
    finally:
        made.close()


@contextmanager
def held_move(fleet, shard):
    """A move of *shard* that is stopped inside its copy, until the block says go; gives (move, target, go)."""
    settings = fleet.settings()
    source = next(iter(fleet_map(fleet).shards_on("pg1"))) if shard is None else shard
    place = fleet_map(fleet).placement(source)
    target = fleet.other(place.server)
    reached, go = threading.Event(), threading.Event()

    def hold(_progress):
        reached.set()
        assert go.wait(250)
        return 0.0

    options = MoveOptions(throttle=hold, soak=False)
    move = moving.begin(settings, source, target, options=options)
    mover = threading.Thread(target=moving.go_on, args=(settings, move.id), kwargs={"options": options})
    mover.start()
    try:
        assert reached.wait(120)
        yield move, place.server, target, go
    finally:
        go.set()
        mover.join(120)


def fleet_map(fleet):
    from shardkit.catalog.overview import current_map

    return current_map(fleet.settings())


def cell(server, shard):
    return f'.cell[data-key="{server}/{shard}"]'


def test_a_move_is_seen_from_its_copy_to_its_end_without_a_reload(chrome, fleet, address):
    with opened(chrome, address) as tab:
        page = tab.page
        assert "token" not in page.url
        assert page.locator(".server").count() == 2
        assert page.locator(".cell").count() == SHARDS
        page.locator("#live", has_text=re.compile("^live$")).wait_for()
        version = re.search(r"map (\d+)", page.inner_text("#cluster"))[1]
        loads = [url for url in tab.asked if url.endswith("/")]
        with held_move(fleet, None) as (move, source, target, go):
            page.wait_for_selector(f"{cell(source, move.shard)}.leaving")
            page.wait_for_selector(f'.cell.coming[data-key="{target}/{move.shard}/coming"]')
            card = page.locator(f'.move[aria-label="Move {move.id}"]')
            card.locator('li[aria-current]:has-text("copy")').wait_for()
            card.locator("progress").wait_for()
            assert f"{source} → {target}" in card.inner_text()
            assert "worked on" in card.inner_text()
            go.set()
            page.wait_for_selector(cell(target, move.shard))
            page.wait_for_selector(cell(source, move.shard), state="detached")
        page.locator("#ended-count", has_text="ended in the last minutes").wait_for()
        page.click("#ended-count")
        ended = page.locator("#ended-rows tr").first.inner_text()
        assert "finished" in ended
        assert "ms" in ended
        page.wait_for_function(f"!document.getElementById('cluster').textContent.includes('map {version} ')")
        assert [url for url in tab.asked if url.endswith("/")] == loads  # the page was loaded once
        assert {urlsplit(url).netloc for url in tab.asked} == {urlsplit(address).netloc}  # and nobody else was asked
        assert tab.complaints == []


def test_heat_follows_what_is_chosen_and_names_itself(chrome, fleet, address):
    with opened(chrome, address) as tab:
        page = tab.page
        heat = page.eval_on_selector_all(".cell", "cells => cells.map(cell => [Number(cell.dataset.heat), cell.ariaLabel])")
        assert max(heat)[0] == 6
        assert len({step for step, _ in heat}) > 1
        assert all(re.fullmatch(r"shard \d+, [\d.]+ [kM]?B \(bytes\)", label) for _, label in heat)
        page.select_option("#measure", "writes_per_s")
        page.wait_for_selector('.cell[aria-label*="(writes per second)"]')
        assert page.get_attribute("#legend", "aria-label") == "Heat by writes per second"
        page.reload()
        page.wait_for_selector('.cell[aria-label*="(writes per second)"]')  # remembered


def tell_of_reads(fleet, *, slow):
    """A program that reads every shard, and longer the one that is *slow*. What it tells counts for a minute."""
    with driver_clock() as clock, ShardKit(settings=fleet.settings()) as kit:
        for shard in range(SHARDS):
            with kit.read(tenants_of(fleet.map, shard=shard, count=1)[0]) as session:
                session.execute(select(Order.id).limit(1)).all()
        with kit.read(tenants_of(fleet.map, shard=slow, count=1)[0]) as session, clock.taking(1.1):
            session.execute(select(Order.id).limit(1)).all()
        kit._router.load.send()


def test_a_slow_shard_is_hot_by_p99_and_first_in_top(chrome, fleet, config, address):
    slow = fleet_map(fleet).shards_on("pg2")[-1]
    tell_of_reads(fleet, slow=slow)
    with opened(chrome, address) as tab:
        page = tab.page
        page.select_option("#measure", "p99_ms")
        found = page.wait_for_selector(f'{cell("pg2", slow)}[data-heat="6"]')
        label = found.get_attribute("aria-label")
        assert float(re.fullmatch(rf"shard {slow}, ([\d.]+) s \(99 of 100 statements took at most that long\)", label)[1]) >= 1
        heat = page.eval_on_selector_all(".cell", "cells => cells.map(cell => Number(cell.dataset.heat))")
        assert len(heat) == SHARDS
        assert 1 <= min(heat) < 6
        assert page.get_attribute("#legend", "aria-label") == "Heat by 99 of 100 statements took at most that long"
        assert page.locator("#busy tr").first.locator("td").first.inner_text() == str(slow)
        found.click()
        page.locator("#detail", has_text=re.compile(r"p99\s*\d\.\d s")).wait_for()
        page.select_option("#measure", "size_bytes")
    tell_of_reads(fleet, slow=slow)
    shown = run("top", "--once", "--by", "p99", "--every", "0.2", "--config", config, env={"COLUMNS": "120"}).stdout
    assert re.search(rf"P99 *\n.*\n *{slow} +pg2 .* 1,[\d.]+ ms", shown), shown
    pulse = json.loads(run("top", "--json", "--every", "0.2", "--config", config).stdout)
    p99 = {shard["shard"]: shard["p99_ms"] for server in pulse["servers"] for shard in server["shards"]}
    assert len(p99) == SHARDS
    assert max(p99, key=p99.get) == slow


def test_keyboard_alone_reaches_every_shard(chrome, fleet, address):
    with opened(chrome, address) as tab:
        page = tab.page
        for _ in range(8):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.className.includes('cell')"):
                break
        else:
            pytest.fail("Tab does not lead to a shard")
        seen = set()

        def here():
            key = page.evaluate("document.activeElement.dataset.key")
            seen.add(key)
            return key

        first = here()
        assert page.get_attribute(cell(*first.split("/")), "aria-selected") == "true"
        shard = int(first.split("/")[1])
        epoch = fleet_map(fleet).placement(shard).epoch  # another test may have moved it
        page.locator("#detail", has_text=schema_name(shard, epoch)).wait_for()
        for _ in range(SHARDS + 2):
            page.keyboard.press("ArrowRight")
            here()
        assert {key.split("/")[0] for key in seen} == {"pg1", "pg2"}  # over the edge, to the next server
        page.keyboard.press("Home")
        begin = here()
        page.keyboard.press("End")
        assert here() != begin
        page.wait_for_timeout(800)  # pulses come and go, and the focus stays
        assert page.evaluate("document.activeElement.dataset.key") == here()
        assert page.locator('.cell[tabindex="0"]').count() == 1


def test_a_screen_reader_finds_names_for_everything(chrome, fleet, address):
    with opened(chrome, address) as tab:
        page = tab.page
        assert page.get_attribute("html", "lang") == "en"
        assert page.get_by_role("heading", name="Shard map").count() == 1
        assert page.get_by_role("listbox", name="Shards of pg1").get_by_role("option").count() > 1
        assert page.get_by_role("combobox", name="Heat by").count() == 1
        page.get_by_role("status").filter(has_text=re.compile("^live$")).wait_for()
        nameless = page.evaluate(
            "[...document.querySelectorAll('button, select, [role=option], [role=listbox], progress')]"
            ".filter(node => !(node.ariaLabel || node.labels?.length || node.textContent.trim())).length"
        )
        assert nameless == 0
        page.locator("#trouble").wait_for(state="hidden")


def luminance(page, selector="body"):
    text = page.eval_on_selector(selector, "node => getComputedStyle(node).backgroundColor")
    return sum(map(int, re.findall(r"\d+", text)[:3]))


def test_light_dark_and_a_telephone(chrome, fleet, address):
    with opened(chrome, address, color_scheme="light") as tab:
        assert luminance(tab.page) > 600
        tab.page.select_option("#theme", "dark")
        assert luminance(tab.page) < 150
    with opened(chrome, address, color_scheme="dark", viewport={"width": 360, "height": 740}) as tab:
        assert luminance(tab.page) < 150
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= 360
        tab.page.select_option("#theme", "light")
        assert luminance(tab.page) > 600


def test_what_is_wrong_is_said(chrome, fleet, address, cluster):
    with opened(chrome, address) as tab:
        page = tab.page
        cluster.kill_server("pg2")
        try:
            page.locator('.server[aria-label="Server pg2"].down .problem').wait_for()
            page.locator("#trouble li", has_text="pg2").wait_for()
            assert page.locator('.server[aria-label="Server pg1"] .pill').inner_text() == "active"
        finally:
            cluster.start_server("pg2")
        page.locator("#trouble").wait_for(state="hidden")
        page.wait_for_function(f"document.querySelectorAll('.cell').length === {SHARDS}")


def test_a_dashboard_that_is_gone_does_not_look_alive(chrome, fleet, config):
    with served(config) as (address, running):
        with opened(chrome, address) as tab:
            os.kill(running.pid, signal.SIGINT)
            tab.page.locator("#live.bad", has_text="the dashboard does not answer").wait_for()
            assert running.wait(120) == 0


def press_for_long(page, button, card):
    """As somebody does who is slow: the page hears of the cluster while the button is down."""
    button.hover()
    page.mouse.down()
    before = card.inner_text()
    page.wait_for_function("([card, before]) => card.innerText !== before", arg=[card.element_handle(), before])
    page.mouse.up()


def test_a_shard_is_moved_from_the_page_only_where_that_is_allowed(chrome, fleet, config):
    with served(config, "--allow-changes") as (address, _), opened(chrome, address) as tab:
        page = tab.page
        shard = fleet_map(fleet).shards_on("pg2")[0]
        page.locator(cell("pg2", shard)).click()
        page.locator("#detail button").click()
        assert f"Move shard {shard} from pg2 to pg1" in page.inner_text("#ask")
        page.get_by_role("button", name="No", exact=True).click()
        assert page.locator(".move").count() == 0
        page.locator(cell("pg2", shard)).click()
        page.locator("#detail button").click()
        page.get_by_role("button", name="Yes").click()
        page.wait_for_selector(cell("pg1", shard))
        drop = page.get_by_role("button", name="Drop the follower")
        drop.wait_for()  # it soaks
        press_for_long(page, drop, page.locator(".move"))
        page.get_by_role("button", name="Yes").click()
        page.locator("#ended-rows tr", has_text="pg2 → pg1").first.wait_for(state="attached")
        assert tab.complaints == []


def ask(address, path, *, method="GET", headers=None, body=None):
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=120)
    try:
        connection.request(method, path, body=body, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders())
    finally:
        connection.close()


def test_nobody_without_the_token_and_nobody_from_elsewhere(fleet, config):
    with served(config) as (address, _):
        for path in ("/", "/events", "/pulse.json", "/static/dashboard.js", "/?token=wrong", "/?token=%C3%A4", "/moves"):
            assert ask(address, path)[0] == 403, path
        token = urlsplit(address).query
        assert ask(address, f"/?{token}", headers={"Host": "evil.example.com"})[0] == 403  # DNS that leads here
        status, headers = ask(address, f"/?{token}")
        assert (status, headers["Location"]) == (302, "/")
        assert {"HttpOnly", "SameSite=Strict"} <= set(headers["Set-Cookie"].split("; "))
        cookie = {"Cookie": headers["Set-Cookie"].partition(";")[0]}
        status, headers = ask(address, "/", headers=cookie)
        assert status == 200
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        change = {"method": "POST", "body": json.dumps({"shard": 1, "target": "pg1"})}
        kind = {"Content-Type": "application/json"}
        assert ask(address, "/moves", headers={**cookie, **kind}, **change)[0] == 403  # it only reads
        assert ask(address, "/moves/1/abort", headers={**cookie, **kind}, **change)[0] == 403
    with served(config, "--allow-changes") as (address, _):
        _, headers = ask(address, f"/?{urlsplit(address).query}")
        cookie = {"Cookie": headers["Set-Cookie"].partition(";")[0]}
        foreign = {**cookie, **kind, "Origin": "http://evil.example.com"}
        assert ask(address, "/moves", headers=foreign, **change)[0] == 403
        form = {**cookie, "Content-Type": "application/x-www-form-urlencoded"}
        assert ask(address, "/moves", headers=form, method="POST", body="shard=1&target=pg1")[0] == 403
        nobody = {"method": "POST", "body": json.dumps({"shard": 1, "target": "nobody"}), "headers": {**cookie, **kind}}
        assert ask(address, "/moves", **nobody)[0] == 409
        assert ask(address, "/moves/999/abort", headers={**cookie, **kind}, **change)[0] == 409
        assert ask(address, "/moves/1/nonsense", headers={**cookie, **kind}, **change)[0] == 404


def test_it_listens_on_loopback_only(fleet, config):
    assert "listens on loopback only" in refused("dashboard", "--host", "0.0.0.0", "--config", config)
    with served(config) as (address, _):
        taken = urlsplit(address).port
        assert f"port {taken} on 127.0.0.1 is in use" in refused("dashboard", "--port", taken, "--config", config)


def test_the_blueprint_in_an_app_of_ones_own(fleet):
    app = Flask("shop")
    app.register_blueprint(dashboard(fleet.settings(), every_s=0.2), url_prefix="/admin/shardkit")
    client = app.test_client()
    with client.get("/admin/shardkit/") as page:
        links = re.findall(r'(?:href|src)="([^"#]+)"', page.text)
    assert len(links) == 3
    for link in links:
        with client.get(f"/admin/shardkit/{link}") as file:
            assert file.status_code == 200, link
    events = client.get("/admin/shardkit/events", buffered=False)
    pulse = json.loads(next(iter(events.response)).decode().partition("data: ")[2])
    events.close()
    assert [server["name"] for server in pulse["servers"]] == ["pg1", "pg2"]
    assert len(client.get("/admin/shardkit/pulse.json").get_json()["servers"]) == 2
    assert client.post("/admin/shardkit/moves", json={"shard": 1, "target": "pg1"}).status_code == 403


def test_top_shows_the_same_in_a_terminal(fleet, config):
    shown = run("top", "--once", "--every", "0.2", "--config", config, env={"COLUMNS": "120"}).stdout
    assert re.search(r"pg1 +\d+ +[\d.]+ MB +\d+/200", shown)
    assert f"{SHARDS} shards" in shown
    with held_move(fleet, None) as (move, source, target, _):
        shown = run("top", "--once", "--every", "0.2", "--config", config, env={"COLUMNS": "120"}).stdout
        assert re.search(rf"{move.id} +{move.shard} +{source} +{target} +copy", shown), shown
